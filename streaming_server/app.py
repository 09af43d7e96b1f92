"""The ASGI application: all dialects over one engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from streaming_server import __version__
from streaming_server.api.captioned import CaptionedDialect
from streaming_server.api.channel import OpenSessions
from streaming_server.api.debug import DebugRoutes
from streaming_server.api.elevenlabs import routes as elevenlabs
from streaming_server.api.higgs import routes as higgs
from streaming_server.api.http import Dialect, ErrorShapes, error_response
from streaming_server.api.metrics import MetricsRoute
from streaming_server.api.middleware import ApiKeys, RequestLog, UnexpectedErrors, UploadGuard
from streaming_server.api.native import routes as native
from streaming_server.api.native.queue import Queue
from streaming_server.api.openai import routes as openai
from streaming_server.api.openai.voices import VoiceRoutes
from streaming_server.api.openapi import Docs
from streaming_server.api.player import routes as player
from streaming_server.api.probes import Probes
from streaming_server.api.record import RequestRecord
from streaming_server.api.references import References
from streaming_server.api.requests import RequestBuilder
from streaming_server.api.tasks import routes as tasks
from streaming_server.api.workflows import routes as workflows
from streaming_server.api.workflows.messages import Messages
from streaming_server.api.workflows.monitoring import Monitoring
from streaming_server.components import create_worker
from streaming_server.engines.base import Engine
from streaming_server.environment import InvalidSetting
from streaming_server.errors import EngineNotReady, SpeechServerError, StorageUnavailable
from streaming_server.jobs.service import JobService
from streaming_server.jobs.storage import Storage
from streaming_server.jobs.worker import Worker
from streaming_server.ops.haproxy_agent import start_agent
from streaming_server.ops.metrics import Metrics
from streaming_server.settings import Settings
from streaming_server.speech.scenes import SceneLibrary
from streaming_server.speech.service import EngineState
from streaming_server.speech.slot import Slot
from streaming_server.speech.voices import VoiceLibrary

if TYPE_CHECKING:
    from streaming_server.api.fleet import Fleet
    from streaming_server.jobs.celery_client import Sender
    from streaming_server.mcp.http import McpDialect
    from streaming_server.wyoming.server import WyomingServer

log = logging.getLogger(__name__)


def create_app(settings: Settings, *, engine: Engine | None = None, wait_for_engine: bool = False) -> Starlette:
    """Create the ASGI application. Two applications in one process share no state.

    Args:
        settings: the settings.
        engine: replaces the engine of the settings.
        wait_for_engine: the startup ends when the engine is ready, and fails if the engine does.

    Raises:
        EngineUnavailable, StorageUnavailable: the engine cannot start, or the storage cannot be used.
        InvalidSetting: `FLEET` contains an invalid base URL.
    """
    fleet: Fleet | None = None
    if settings.fleet:
        from streaming_server.api.fleet import Fleet  # imports httpx, which is slow

        fleet = Fleet(settings.fleet)
    metrics = Metrics()
    worker = create_worker(settings, None, engine, metrics.speech)
    service, storage, voices = worker.service, worker.storage, worker.voices
    background = [worker.tidy]
    if settings.celery_broker_url:
        sender = _sender(settings)
        announce = sender.announce
        background += [sender.send, partial(sender.resend, storage.workers)]
    else:
        announce = worker.runner.announce
        background += [worker.live, worker.runner.run]
    jobs = JobService(storage, announce, worker.runner.interrupt)
    messages = Messages.for_worker(worker, settings.max_text_characters)
    metrics.gauges("speech_queue_length", "Requests at the slot", lambda: _queue(service.slot), "place")
    metrics.gauges("speech_jobs", "Stored tasks", storage.jobs.counts, "state")
    metrics.streams(service)
    open_sessions = OpenSessions()
    metrics.gauges("speech_sessions", "Open WebSocket sessions", lambda: open_sessions, "protocol")
    metrics.build(__version__, service.engine.info)
    prompts, scenes = VoiceLibrary(settings.voice_prompts_dir), SceneLibrary(settings.scene_prompts_dir)
    requests = create_requests(settings, worker)
    dialects: list[Dialect] = [
        native.NativeDialect(service, voices, requests, settings),
        Queue(service, settings, fleet),
        elevenlabs.ElevenLabsDialect(service, voices, requests, settings),
        player.PlayerDialect(service, voices, requests, settings),
        CaptionedDialect(service, voices, requests, settings),
        openai.OpenAIDialect(service, voices, requests, settings),
        VoiceRoutes(voices, storage),
        tasks.TasksDialect(service, voices, jobs, storage.uploads, requests, settings),
        workflows.WorkflowsDialect(service, jobs, messages, settings),
        Monitoring(storage.workers, storage.request_threads, worker.id, service.slot),
        MetricsRoute(metrics),
        Probes(service),
        DebugRoutes(service, bool(settings.api_keys)),
        higgs.HiggsDialect(service, prompts, voices, scenes, storage.scratch, storage.uploads, requests, settings),
    ]
    mcp = _mcp(settings, requests, storage)
    dialects += [mcp] if mcp else []
    shapes = ErrorShapes(
        native.ERRORS,
        {prefix: shape for dialect in dialects for prefix, shape in dialect.shapes.items()},
        {path: shape for dialect in dialects for path, shape in dialect.path_shapes.items()},
    )
    dialects.append(Docs(shapes, ApiKeys.OPEN, settings.max_text_characters, keys_needed=bool(settings.api_keys)))

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, SpeechServerError):
            RequestRecord.of(request.scope).outcome = error.code
        if isinstance(error, HTTPException) and error.status_code == 405:
            # A path may have several routes, each with its own methods.
            here = [
                route for route in app.routes if isinstance(route, Route) and route.path_regex.match(request.url.path)
            ]
            # A file below /static has no route.
            methods = {method for route in here for method in route.methods or ()} or {"GET", "HEAD"}
            error.headers = {"Allow": ", ".join(sorted(methods))}
        slot = service.slot
        return error_response(error, shapes.of(request.url.path), slot.expected_wait_s(slot.position_of_newcomer))

    app = Starlette(
        routes=[route for dialect in dialects for route in dialect.routes()],
        middleware=[
            Middleware(RequestLog, metrics=metrics),
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["*"],
                allow_private_network=True,
            ),
            Middleware(ApiKeys, keys=settings.api_keys, shapes=shapes, metrics_key=settings.metrics_key),
            Middleware(
                UploadGuard,
                shapes=shapes,
                origins=settings.cors_origins,
                max_uploads=settings.max_uploads,
                timeout_s=settings.upload_timeout_s,
            ),
            Middleware(UnexpectedErrors, shapes=shapes),
        ],
        exception_handlers={SpeechServerError: refuse, HTTPException: refuse},
        lifespan=_lifespan(
            worker,
            settings,
            fleet,
            background,
            _wyoming(settings, requests, metrics),
            mcp,
            wait_for_engine=wait_for_engine,
        ),
    )
    app.router.redirect_slashes = False
    app.router.default = _not_found
    app.state.service = service
    app.state.voices = voices
    app.state.has_keys = bool(settings.api_keys)
    app.state.ready = asyncio.Event()
    app.state.open_sessions = open_sessions
    app.state.parsing = CapacityLimiter(1)
    return app


def create_requests(settings: Settings, worker: Worker) -> RequestBuilder:
    """Create the builder of the requests of all dialects."""
    storage = worker.storage
    references = References(storage.uploads, storage.scratch, settings.ref_audio_hosts)
    return RequestBuilder(worker.service, worker.voices, settings, references)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Starlette's default closes a WebSocket with 403.

    Raises:
        HTTPException: 404.
    """
    raise HTTPException(404)


def _queue(slot: Slot) -> Mapping[str, float]:
    status = slot.status()
    return {"holding": float(len(status.holders)), "waiting": float(len(status.waiting))}


def _sender(settings: Settings) -> Sender:
    try:
        from streaming_server.jobs.celery_client import Sender
    except ModuleNotFoundError as error:
        raise StorageUnavailable(f"CELERY_BROKER_URL needs {error.name}: run scripts/install celery") from error
    return Sender(settings.celery_broker_url)


def _mcp(settings: Settings, requests: RequestBuilder, storage: Storage) -> McpDialect | None:
    if not settings.mcp:
        return None
    try:
        from streaming_server.mcp.http import McpDialect
    except ModuleNotFoundError as error:
        raise InvalidSetting(f"MCP needs {error.name}: run scripts/install mcp") from error
    return McpDialect(requests, storage)


def _wyoming(settings: Settings, requests: RequestBuilder, metrics: Metrics) -> WyomingServer | None:
    if not settings.wyoming_port:
        return None
    try:
        from streaming_server.wyoming.server import WyomingOptions, WyomingServer
    except ModuleNotFoundError as error:
        raise InvalidSetting(f"WYOMING_PORT needs {error.name}: run scripts/install wyoming") from error
    options = WyomingOptions(
        settings.host,
        settings.wyoming_port,
        settings.max_connections,
        settings.max_connections_per_address,
        settings.wyoming_zeroconf,
        send_timeout_s=settings.send_timeout_s,
    )
    return WyomingServer(requests, metrics, options)


def _lifespan(
    worker: Worker,
    settings: Settings,
    fleet: Fleet | None,
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]],
    wyoming: WyomingServer | None,
    mcp: McpDialect | None,
    *,
    wait_for_engine: bool,
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    async def warm(app: Starlette) -> None:
        try:
            await worker.service.warm()
        except Exception:
            log.exception("engine failed to start")
        else:
            app.state.ready.set()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # In the background, so that the server answers requests while the model loads.
        running = [asyncio.create_task(warm(app)), *(asyncio.create_task(work()) for work in background)]
        agent = await start_agent(worker.service, settings.host, settings.agent_port) if settings.agent_port else None
        try:
            if wait_for_engine:
                await running[0]
                if worker.service.state is EngineState.FAILED:
                    raise EngineNotReady
            if wyoming:
                await wyoming.start()
            async with mcp.run() if mcp else nullcontext():
                yield
        finally:
            if wyoming:
                await wyoming.aclose()
            if agent:
                agent.close()
            if fleet:
                await fleet.aclose()
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            await worker.aclose()

    return lifespan
