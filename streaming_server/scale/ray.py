"""The server as a Ray Serve deployment: ``serve run deploy/ray.yaml``.

Each replica is a complete server with its own engine and slot. Ray sends several requests to a replica at once and the
slot orders them; with one request at a time the device would be idle between two requests.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from ray import serve
from starlette.applications import Starlette

from streaming_server import logs
from streaming_server.app import create_app
from streaming_server.environment import InvalidSetting
from streaming_server.errors import DeviceFailed
from streaming_server.settings import Settings

log = logging.getLogger(__name__)

_FAILED_S = 1.0
"""Time for which a replica reports a failed device before it ends."""
_MAX_WAITING = 7
"""Requests that wait in a replica's slot, beside those that run. Further requests wait in Ray, for any replica."""


def _written(value: object) -> str:
    """A value of YAML as an environment variable has it; null is an empty one, which counts as not set."""
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def application(options: Mapping[str, object]) -> serve.Application:
    """Build the application for ``serve run``.

    Args:
        options: settings by variable name, as YAML reads them; they override the environment.

    Raises:
        InvalidSetting: a setting has an invalid value, or opens a port, of which replicas on one host have only one.
    """
    settings = Settings.from_env(os.environ | {name: _written(value) for name, value in options.items()})
    for name, port in {"WYOMING_PORT": settings.wyoming_port, "AGENT_PORT": settings.agent_port}.items():
        if port:
            raise InvalidSetting(f"{name} is not available with Ray Serve: each replica on a host would open the port")

    def build() -> Starlette:
        logs.configure(form=settings.log_format, level=settings.log_level)
        app = create_app(settings, wait_for_engine=True)  # Ray sends requests after the startup
        app.router.lifespan_context = _watched(app)
        return app

    deploy = serve.deployment(
        name="speech",
        max_ongoing_requests=settings.max_concurrent + _MAX_WAITING,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 8,
            "target_ongoing_requests": settings.max_concurrent + 1,
        },
    )
    return deploy(serve.ingress(build)()).bind()


def _watched(app: Starlette) -> Callable[[Starlette], AbstractAsyncContextManager[Any]]:
    """The application's lifespan, which ends the replica if the device fails."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with inner(app):
            ending = asyncio.create_task(_end_without_device(app.state.service.device_failed))
            try:
                yield
            finally:
                ending.cancel()

    return lifespan


async def _end_without_device(failed: asyncio.Event) -> None:
    """End the process of the replica, after its streams have sent their error, so that Ray starts another one."""
    await failed.wait()
    log.error("replica ends: exit_status=%d reason='the device failed'", DeviceFailed.exit_status)
    await asyncio.sleep(_FAILED_S)
    os._exit(DeviceFailed.exit_status)
