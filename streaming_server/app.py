"""Where the parts are put together. The only module that knows them all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
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
from streaming_server.api.channel import OpenSessions
from streaming_server.api.debug import DebugRoutes
from streaming_server.api.elevenlabs import routes as elevenlabs
from streaming_server.api.fleet import Fleet
from streaming_server.api.higgs import routes as higgs
from streaming_server.api.http import Dialect, ErrorShapes, error_response
from streaming_server.api.metrics import MetricsRoute
from streaming_server.api.middleware import ApiKeys, RequestLog, UnexpectedErrors, UploadGuard
from streaming_server.api.native import routes as native
from streaming_server.api.native.queue import Queue
from streaming_server.api.openai import routes as openai
from streaming_server.api.openai.voices import VoiceRoutes
from streaming_server.api.openapi import Docs
from streaming_server.api.probes import Probes
from streaming_server.api.record import RequestRecord
from streaming_server.api.references import References
from streaming_server.api.requests import RequestBuilder
from streaming_server.api.tasks import routes as tasks
from streaming_server.api.workflows import routes as workflows
from streaming_server.api.workflows.messages import Messages
from streaming_server.api.workflows.monitoring import Monitoring
from streaming_server.engines.base import Engine
from streaming_server.engines.registry import create_engine
from streaming_server.environment import InvalidSetting
from streaming_server.errors import SpeechServerError, StorageUnavailable
from streaming_server.jobs.chains import OrderPlanner
from streaming_server.jobs.service import JobService
from streaming_server.jobs.storage import Storage, StorageOptions
from streaming_server.jobs.store import Job
from streaming_server.jobs.uploads import UploadLimits
from streaming_server.jobs.worker import Worker
from streaming_server.ops.gpu import gpus
from streaming_server.ops.haproxy_agent import start_agent
from streaming_server.ops.metrics import Metrics
from streaming_server.settings import Settings
from streaming_server.speech.buffers import ByteLimits
from streaming_server.speech.encoder_pool import EncoderPool
from streaming_server.speech.scenes import SceneLibrary
from streaming_server.speech.service import Resumption, SpeechService
from streaming_server.speech.slot import Slot
from streaming_server.speech.stream import SpeechStats
from streaming_server.speech.voices import VoiceLibrary

if TYPE_CHECKING:
    from streaming_server.jobs.celery_client import Sender
    from streaming_server.wyoming.server import WyomingServer

log = logging.getLogger(__name__)
_MIB = 1024 * 1024


def create_service(
    settings: Settings,
    engine: Engine | None = None,
    observe: Callable[[str, SpeechStats], None] = lambda *_: None,
) -> SpeechService:
    """The engine behind its slot, not warm yet; ``observe`` as for `SpeechService`.

    Raises:
        EngineUnavailable: the engine cannot start.
    """
    return SpeechService(
        engine or create_engine(settings.engine, settings.engine_options),
        Slot(
            settings.max_queue,
            settings.queue_timeout_s,
            live_first=settings.live_first,
            shows_text=settings.queue_preview,
        ),
        EncoderPool(),
        ByteLimits.of(settings.unsent_total_mb * _MIB),
        Resumption(settings.resume_keep_s, settings.resume_grace_s),
        settings.max_text_characters,
        observe,
    )


def create_storage(settings: Settings) -> Storage:
    """What outlives the process, opened.

    Raises:
        StorageUnavailable: it cannot be used.
    """
    uploads = UploadLimits(
        settings.upload_max_mb * _MIB, settings.upload_max_s, settings.upload_keep_s, settings.max_task_attempts
    )
    return Storage(
        StorageOptions(
            settings.data_dir,
            settings.database_url,
            uploads,
            settings.audio_keep_s,
            settings.max_pending_tasks,
            settings.task_lease_s,
            settings.max_task_attempts,
            settings.storage_wait_s,
            settings.workflow_root,
            settings.files_url,
        )
    )


def _devices() -> list[dict[str, Any]]:
    return [asdict(gpu) for gpu in gpus()]


def create_worker(
    settings: Settings,
    announce: Callable[[Job], None] | None = None,
    engine: Engine | None = None,
    observe: Callable[[str, SpeechStats], None] = lambda *_: None,
) -> Worker:
    """An engine, and what it needs to do jobs; ``announce`` as for `JobRunner`, ``observe`` as for `SpeechService`.

    Raises:
        EngineUnavailable, StorageUnavailable: the engine cannot start, the storage cannot be used.
    """
    service = create_service(settings, engine, observe)
    storage = create_storage(settings)
    info = service.engine.info
    voices = VoiceLibrary(
        settings.reference_audio_dir, storage.voices.find, storage.voices.named, info.presets, blends=info.blends
    )
    return Worker(service, storage, voices, _devices, announce)


def create_messages(settings: Settings, worker: Worker) -> Messages:
    """The messages of workflows, for their routes and for Celery."""
    planner = OrderPlanner(worker.presets, worker.storage.files, worker.storage.workflow_root)
    return Messages(planner, settings.max_text_characters)


def create_app(settings: Settings, *, engine: Engine | None = None) -> Starlette:
    """The ASGI application; two of them in one process share nothing.

    Args:
        settings: what is set.
        engine: used instead of the one that the settings name.

    Raises:
        EngineUnavailable, StorageUnavailable: the engine cannot start, the storage cannot be used.
        InvalidSetting: a fleet of what are no base URLs.
    """
    fleet = Fleet(settings.fleet) if settings.fleet else None
    metrics = Metrics()
    worker = create_worker(settings, None, engine, metrics.speech)
    service, storage, voices = worker.service, worker.storage, worker.voices
    background = [worker.tidy]
    if settings.celery_broker_url:
        sender = _sender(settings)
        announce = sender.announce
        background.append(partial(sender.resend, storage.workers))
    else:
        announce = worker.runner.announce
        background += [worker.live, worker.runner.run]
    jobs = JobService(storage, announce, worker.runner.interrupt)
    messages = create_messages(settings, worker)
    metrics.gauges("speech_queue_length", "Requests at the slot", lambda: _queue(service.slot), "place")
    metrics.gauges("speech_jobs", "Stored tasks", storage.jobs.counts, "state")
    metrics.streams(service)
    open_sessions = OpenSessions()
    metrics.gauges("speech_sessions", "Open WebSocket sessions", lambda: open_sessions, "protocol")
    metrics.build(__version__, service.engine.info)
    prompts, scenes = VoiceLibrary(settings.voice_prompts_dir), SceneLibrary(settings.scene_prompts_dir)
    references = References(storage.uploads, storage.scratch, settings.ref_audio_hosts)
    requests = RequestBuilder(service, voices, settings, references)
    dialects: list[Dialect] = [
        native.NativeDialect(service, voices, requests, settings),
        Queue(service, settings, fleet),
        elevenlabs.ElevenLabsDialect(service, voices, requests, settings),
        openai.OpenAIDialect(service, voices, requests, settings),
        VoiceRoutes(voices, storage),
        tasks.TasksDialect(service, voices, jobs, storage.uploads, requests, settings),
        workflows.WorkflowsDialect(service, jobs, messages, settings),
        Monitoring(storage.workers, storage.request_threads, worker.id, service.slot),
        MetricsRoute(metrics),
        Probes(service),
        DebugRoutes(service, bool(settings.api_keys)),
        higgs.HiggsDialect(service, prompts, voices, scenes, storage.scratch, requests, settings),
    ]
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
            # A route knows its own methods only; a path may have several routes.
            here = [
                route for route in app.routes if isinstance(route, Route) and route.path_regex.match(request.url.path)
            ]
            error.headers = {"Allow": ", ".join(sorted({method for route in here for method in route.methods or ()}))}
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
        lifespan=_lifespan(worker, settings, fleet, background, _wyoming(settings, requests, metrics)),
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


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Starlette's own closes a WebSocket with 403.

    Raises:
        HTTPException: 404.
    """
    raise HTTPException(404)


def _queue(slot: Slot) -> Mapping[str, float]:
    status = slot.status()
    return {"holding": float(status.holder is not None), "waiting": float(len(status.waiting))}


def _sender(settings: Settings) -> Sender:
    try:
        from streaming_server.jobs.celery_client import Sender
    except ModuleNotFoundError as error:
        raise StorageUnavailable(f"CELERY_BROKER_URL needs {error.name}: run scripts/install celery") from error
    return Sender(settings.celery_broker_url)


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
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    async def warm(app: Starlette) -> None:
        try:
            await worker.service.warm()
        except Exception:
            log.exception("the engine cannot be used")
        else:
            app.state.ready.set()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # In the background: while the model loads the server answers that it does.
        running = [asyncio.create_task(warm(app)), *(asyncio.create_task(work()) for work in background)]
        agent = await start_agent(worker.service, settings.host, settings.agent_port) if settings.agent_port else None
        try:
            if wyoming:
                await wyoming.start()
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
