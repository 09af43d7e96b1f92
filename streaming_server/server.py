"""Runs the application under uvicorn."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn
from uvicorn.supervisors import ChangeReload

from streaming_server import logs
from streaming_server.app import create_app
from streaming_server.errors import DeviceFailed
from streaming_server.ops.debug import dump_stacks_on_signal
from streaming_server.protocols import ConnectionLimits, SessionProtocol, SpeechProtocol
from streaming_server.settings import Settings, warn_of_removed
from streaming_server.startup import open_access, summary, unused_gpu

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Maximum size of a WebSocket message; a larger one closes the connection with 1009."""
_KEEP_ALIVE_S = 75
"""Time after which an idle connection is closed. It exceeds that of nginx and load balancers (60 s), because a request
that is sent while the server closes the connection is lost."""
_SEND_GRACE_S = 1.0
"""In addition to ``send_timeout_s``: a stream and a session end first and record why."""
_FAILED_S = 1.0
"""Time for which the server reports a failed device before it ends, so that gateways and clients can detect it."""
_BLOCKED_S = 10.0
"""Time for which a failed device may block the end of the process, in addition to ``shutdown_timeout_s``."""


def connection_limits(settings: Settings) -> ConnectionLimits:
    """Return the limits of the settings; a quarter of the file descriptors is reserved for other uses."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ConnectionLimits(
        connections=min(settings.max_connections, descriptors * 3 // 4),
        connections_per_address=settings.max_connections_per_address,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        body_min_rate=settings.body_min_rate,
        send_timeout_s=settings.send_timeout_s + _SEND_GRACE_S,
    )


class SpeechServer(uvicorn.Server):
    """uvicorn's server. Reports the configuration when the engine is ready, and ends if the device fails."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.exit_status = 0
        """Nonzero after a failure of the device."""
        self.on_ready: Callable[[], None] = lambda: None
        """Called once the server listens and the engine is warm."""
        self.on_device_failure: Callable[[], None] = lambda: None
        """Called before the shutdown, which a failed device may block."""
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tasks = [asyncio.create_task(self._report()), asyncio.create_task(self._end_without_device())]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._tasks:
            task.cancel()
        await super().shutdown(sockets)

    async def _end_without_device(self) -> None:
        await self.config.app.state.service.device_failed.wait()  # type: ignore[union-attr]
        await asyncio.sleep(_FAILED_S)
        log.error("server ends: exit_status=%d reason='the device failed'", DeviceFailed.exit_status)
        self.on_device_failure()
        self.exit_status = DeviceFailed.exit_status
        self.should_exit = True

    async def _report(self) -> None:
        state = self.config.app.state  # type: ignore[union-attr]
        await state.ready.wait()
        self.on_ready()
        info = state.service.engine.info
        if warning := await asyncio.to_thread(unused_gpu, info):
            log.warning(warning)
        if warning := open_access(self.config.host, state.has_keys):
            log.warning(warning)
        port = self.servers[0].sockets[0].getsockname()[1]
        log.info(summary(info, len(state.voices.all()), self.config.host, port))


def create_server(settings: Settings, **options: object) -> SpeechServer:
    """Create a server; ``options`` are passed to `create_app`.

    Raises:
        EngineUnavailable: the engine cannot start.
    """
    config = uvicorn.Config(
        create_app(settings, **options),  # type: ignore[arg-type]
        host=settings.host,
        port=settings.port,
        http=partial(SpeechProtocol, limits=connection_limits(settings)),  # type: ignore[arg-type]
        ws=partial(SessionProtocol, send_timeout_s=settings.send_timeout_s + _SEND_GRACE_S),  # type: ignore[arg-type]
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_timeout=settings.send_timeout_s,  # a client may not read for long while it plays buffered audio
        ws_per_message_deflate=False,  # encoded audio is not compressible
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )
    return SpeechServer(config)


def serve(settings: Settings, *, reload: bool = False) -> None:
    """Run until a signal; running streams then have ``shutdown_timeout_s`` to end.

    If the engine's device fails, the process ends with the exit status of `DeviceFailed`.

    Args:
        settings: the settings.
        reload: restart in a new process when a file of the package changes.
    """
    if not reload:
        _run(settings, None)
        return
    logs.configure(form=settings.log_format, level=settings.log_level)  # of the process that restarts the other
    watched = [str(Path(__file__).parent)]
    config = uvicorn.Config(
        "", host=settings.host, port=settings.port, log_config=None, reload=True, reload_dirs=watched
    )
    ChangeReload(config, partial(_run, settings), [config.bind_socket()]).run()


def _run(settings: Settings, sockets: list[socket.socket] | None) -> None:
    # Set here, because a restarted process inherits neither.
    sys.setswitchinterval(0.0005)
    logs.configure(file=settings.log_path, form=settings.log_format, level=settings.log_level)
    warn_of_removed(os.environ)
    dump_stacks_on_signal()
    server = create_server(settings)
    server.on_ready = _freeze
    limit_s = settings.shutdown_timeout_s + _BLOCKED_S
    server.on_device_failure = lambda: faulthandler.dump_traceback_later(limit_s, exit=True)
    server.run(sockets)
    if server.exit_status:
        logging.shutdown()
        os._exit(server.exit_status)  # the CUDA runtime aborts where it is unloaded after a failure


def _freeze() -> None:
    """Exempt what lives as long as the process, the model included, from garbage collection.

    A full collection stops all threads; frozen objects reduce it from 50 ms to 1 ms.
    """
    gc.collect()
    gc.freeze()
