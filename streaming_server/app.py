"""Where the parts are put together. The only module that knows them all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from streaming_server.api import native, openai
from streaming_server.api.docs import Docs
from streaming_server.api.http import ErrorShapes, error_response
from streaming_server.api.middleware import ApiKeys, RequestLog, UnexpectedErrors
from streaming_server.api.queue import Queue
from streaming_server.core.buffers import ByteLimits
from streaming_server.core.lane import EncodeLane
from streaming_server.core.slot import Slot
from streaming_server.core.speech import Resumption, SpeechService
from streaming_server.core.voices import VoiceLibrary
from streaming_server.engines.base import Engine, EngineOptions, IndexTTS2Options, create_engine
from streaming_server.errors import SpeechServerError
from streaming_server.settings import Settings

log = logging.getLogger(__name__)
_MIB = 1024 * 1024


def create_service(settings: Settings, engine: Engine | None = None) -> SpeechService:
    """The engine behind its slot, not warm yet.

    Raises:
        EngineUnavailable: the engine cannot start.
    """
    return SpeechService(
        engine or create_engine(engine_options(settings)),
        Slot(settings.max_queue, settings.queue_timeout_s),
        EncodeLane(settings.encode_threads),
        ByteLimits(settings.unsent_stream_mb * _MIB, settings.unsent_total_mb * _MIB, settings.resume_total_mb * _MIB),
        Resumption(settings.resume_keep_s, settings.resume_grace_s, settings.resume_max_streams),
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
        indextts2=indextts2_options(settings),
    )


def indextts2_options(settings: Settings) -> IndexTTS2Options:
    return IndexTTS2Options(
        stream=settings.indextts2_stream,  # type: ignore[arg-type]
        steps=settings.indextts2_steps,
        look_ahead=settings.indextts2_look_ahead,
        reference_s=settings.indextts2_reference_s,
        cap_emotion=settings.indextts2_emotion_cap == "on",
        language=None if settings.tts_language == "auto" else settings.tts_language,
        w2vbert_dir=_path(settings.w2vbert_dir),
        campplus_file=_path(settings.campplus_file),
        bigvgan_dir=_path(settings.bigvgan_dir),
        semantic_codec_file=_path(settings.semantic_codec_file),
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def create_app(settings: Settings, *, engine: Engine | None = None) -> Starlette:
    """The ASGI application; two of them in one process share nothing.

    Args:
        settings: what is set.
        engine: used instead of the one that the settings name.

    Raises:
        EngineUnavailable: the engine cannot start.
    """
    service = create_service(settings, engine)
    voices = VoiceLibrary(settings.reference_audio_dir)
    shapes = ErrorShapes(native.ERRORS, openai.SHAPES, openai.PATH_SHAPES)
    dialects = (
        native.NativeDialect(service, voices, settings),
        Queue(service, settings),
        openai.OpenAIDialect(service, voices, settings),
        Docs(shapes, ApiKeys.OPEN, keys_needed=bool(settings.api_keys)),
    )

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, SpeechServerError):
            request.scope["state"]["log"]["outcome"] = error.code
        slot = service.slot
        return error_response(error, shapes.of(request.url.path), slot.expected_wait_s(slot.position_of_newcomer))

    app = Starlette(
        routes=[route for dialect in dialects for route in dialect.routes()],
        middleware=[
            Middleware(RequestLog),
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
        lifespan=_lifespan(service),
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _lifespan(service: SpeechService) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    async def warm() -> None:
        try:
            await service.warm()
        except Exception:
            log.exception("the engine cannot be used")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # In the background: while the model loads the server answers that it does.
        warming = asyncio.create_task(warm())
        try:
            yield
        finally:
            warming.cancel()
            await asyncio.wait([warming])
            await service.aclose()

    return lifespan
