"""Where the parts are put together. The only module that knows them all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from streaming_server.api import native, openai, tasks
from streaming_server.api.docs import Docs
from streaming_server.api.http import ErrorShapes, error_response
from streaming_server.api.metrics import MetricsRoute
from streaming_server.api.middleware import ApiKeys, RequestLog, UnexpectedErrors
from streaming_server.api.queue import Queue
from streaming_server.core.backlog import Backlog
from streaming_server.core.buffers import ByteLimits
from streaming_server.core.lane import EncodeLane
from streaming_server.core.metrics import Metrics
from streaming_server.core.runner import JobRunner
from streaming_server.core.slot import Slot
from streaming_server.core.speech import Resumption, SpeechService
from streaming_server.core.storage import Storage, StorageOptions
from streaming_server.core.stream import SpeechStats
from streaming_server.core.uploads import UploadLimits
from streaming_server.core.voices import VoiceLibrary
from streaming_server.engines.base import Engine, EngineOptions, create_engine
from streaming_server.errors import SpeechServerError
from streaming_server.settings import Settings

log = logging.getLogger(__name__)
_MIB = 1024 * 1024
_TIDY_S = 60.0
"""At most so long after its time is over something is removed, or sooner where things are kept for less."""


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
        engine or create_engine(engine_options(settings)),
        Slot(settings.max_queue, settings.queue_timeout_s, live_first=settings.live_first),
        EncodeLane(settings.encode_threads),
        ByteLimits(settings.unsent_stream_mb * _MIB, settings.unsent_total_mb * _MIB, settings.resume_total_mb * _MIB),
        Resumption(settings.resume_keep_s, settings.resume_grace_s, settings.resume_max_streams),
        observe,
    )


def create_storage(settings: Settings) -> Storage:
    """What outlives the process, opened.

    Raises:
        StorageUnavailable: it cannot be used.
    """
    uploads = UploadLimits(settings.upload_max_mb * _MIB, settings.upload_max_s, settings.upload_keep_s)
    return Storage(
        StorageOptions(
            settings.data_dir,
            settings.database_url,
            uploads,
            settings.audio_keep_s,
            settings.max_pending_tasks,
            settings.task_lease_s,
        )
    )


def engine_options(settings: Settings) -> EngineOptions:
    """What the settings say of the engine; their choices are the options' own."""
    return EngineOptions(
        name=settings.engine,  # type: ignore[arg-type]
        model_dir=settings.model_dir,
        device=settings.device,  # type: ignore[arg-type]
        precision=None if settings.precision == "auto" else settings.precision,  # type: ignore[arg-type]
        look_ahead=int(settings.look_ahead) if settings.look_ahead.isdigit() else "exact",
        voice_cache_size=settings.voice_cache,
    )


def create_app(settings: Settings, *, engine: Engine | None = None) -> Starlette:
    """The ASGI application; two of them in one process share nothing.

    Args:
        settings: what is set.
        engine: used instead of the one that the settings name.

    Raises:
        EngineUnavailable, StorageUnavailable: the engine cannot start, the storage cannot be used.
    """
    metrics = Metrics()
    service = create_service(settings, engine, metrics.speech)
    storage = create_storage(settings)
    voices = VoiceLibrary(settings.reference_audio_dir, storage.uploads.voice)
    runner = JobRunner(storage, service, voices)
    metrics.gauge("speech_queue_length", "Who waits for the slot", lambda: _queue(service.slot), "place")
    metrics.gauge("speech_jobs", "Tasks that are kept", storage.jobs.counts, "state")
    shapes = ErrorShapes(native.ERRORS, {**openai.SHAPES, **tasks.SHAPES}, openai.PATH_SHAPES)
    dialects = (
        native.NativeDialect(service, voices, settings),
        Queue(service, settings),
        openai.OpenAIDialect(service, voices, settings),
        tasks.TasksDialect(service, voices, Backlog(storage, runner), storage.uploads, settings),
        MetricsRoute(metrics),
        Docs(shapes, ApiKeys.OPEN, keys_needed=bool(settings.api_keys)),
    )

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, SpeechServerError):
            request.scope["state"]["log"]["outcome"] = error.code
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
            Middleware(ApiKeys, keys=settings.api_keys, shapes=shapes),
            Middleware(UnexpectedErrors, shapes=shapes),
        ],
        exception_handlers={SpeechServerError: refuse, HTTPException: refuse},
        lifespan=_lifespan(service, storage, runner, min(_TIDY_S, settings.upload_keep_s, settings.audio_keep_s)),
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _queue(slot: Slot) -> Mapping[str, float]:
    status = slot.status()
    return {"holding": float(status.holder is not None), "waiting": float(len(status.waiting))}


def _lifespan(
    service: SpeechService, storage: Storage, runner: JobRunner, tidy_s: float
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    async def warm() -> None:
        try:
            await service.warm()
        except Exception:
            log.exception("the engine cannot be used")

    async def tidy() -> None:
        while True:
            try:
                await asyncio.to_thread(storage.tidy)
            except Exception:
                log.exception("what has expired could not be removed")
            await asyncio.sleep(tidy_s)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # In the background: while the model loads the server answers that it does.
        tasks = [asyncio.create_task(work) for work in (warm(), tidy(), runner.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await service.aclose()
            storage.close()

    return lifespan
