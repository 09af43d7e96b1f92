"""The native dialect: ``/synthesize*``, reference audio, status and smoke checks. The queue's routes are in `queue`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from streaming_server import __version__
from streaming_server.api.http import (
    Dialect,
    ErrorShape,
    MalformedBody,
    head_response,
    parse_body,
    parse_query,
)
from streaming_server.api.native import schemas as operations
from streaming_server.api.native.schemas import (
    HEALTH_STATUSES,
    SHOWN_WHERE_PRESENT,
    TAG,
    GenerationBody,
    Health,
    ModelInfo,
    NativeError,
    OpusStreamBody,
    ReferenceAudio,
    ReferenceAudios,
    Root,
    SimpleBody,
    StreamBody,
    SynthesizeBody,
)
from streaming_server.api.operations import ApiRoute
from streaming_server.api.requests import RequestBuilder
from streaming_server.api.responses import AudioFileResponse, SpeechResponse, WholeSpeechResponse
from streaming_server.api.timed import SubtitleResponse
from streaming_server.audio.encoders import FORMATS, PcmEncoder
from streaming_server.domain import Capability, Generation, Granularity, SpeechRequest
from streaming_server.errors import (
    BlankText,
    EngineNotReady,
    InvalidRequest,
    SpeechServerError,
    VoiceFileMissing,
    VoiceIndexOutOfRange,
)
from streaming_server.settings import Settings
from streaming_server.speech.service import EngineState, SpeechService
from streaming_server.speech.voices import VoiceLibrary

_STATIC = Path(__file__).parents[2] / "static"
_SMOKE_TEXT = "欢迎使用TTS服务"
_MEDIA_TYPES = {
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
}
_STATUS_TEXTS = {"Not Found": "path not found", "Method Not Allowed": "method not allowed"}


def error_text(error: Exception) -> str:
    """Return the message of an error, in Chinese where the contract has it so."""
    match error:
        case BlankText():
            return "文本不能为空"
        case VoiceIndexOutOfRange(index=index, count=count):
            return f"参考音频序号无效: {index}. " + (f"有效范围: 0-{count - 1}" if count else "参考音频目录为空")
        case VoiceFileMissing(filename=filename):
            return f"参考音频文件不存在: {filename}"
        case EngineNotReady():
            return "模型未加载"
    return str(error)


def error_body(status: int, message: str, error: SpeechServerError | None) -> NativeError:
    """``{"detail": …}``: for 422 a list of problems in FastAPI's format, otherwise a message."""
    message = error_text(error) if error else message
    if isinstance(error, MalformedBody):
        return {"detail": error.problems}
    if status == 422 and isinstance(error, InvalidRequest):
        return {"detail": [{"loc": [error.place, error.field], "msg": message, "type": error.code}]}
    return {"detail": _STATUS_TEXTS.get(message, message)}


ERRORS = ErrorShape(error_body, NativeError, invalid_status=422)


class _FreshFiles(StaticFiles):
    """Static files that browsers revalidate by their ETag, so that a page never mixes modules of two versions."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


@dataclass(frozen=True, slots=True)
class NativeDialect(Dialect):
    """The native routes of one service."""

    service: SpeechService
    voices: VoiceLibrary
    requests: RequestBuilder
    settings: Settings

    def routes(self) -> list[BaseRoute]:
        return [
            ApiRoute("/", self.root, TAG, operations.ROOT),
            ApiRoute("/player", self.player, TAG, operations.PLAYER),
            Mount("/static", GZipMiddleware(_FreshFiles(directory=_STATIC))),
            ApiRoute("/health", self.health, TAG, operations.HEALTH),
            ApiRoute("/model_info", self.model_info, TAG, operations.MODEL_INFO),
            ApiRoute("/synthesize", self.synthesize, TAG, operations.SYNTHESIZE, methods=["POST"]),
            ApiRoute("/synthesize_simple", self.synthesize_simple, TAG, operations.SYNTHESIZE_SIMPLE, methods=["POST"]),
            ApiRoute("/synthesize_stream", self.synthesize_stream, TAG, operations.SYNTHESIZE_STREAM, methods=["POST"]),
            ApiRoute(
                "/synthesize_stream_opus",
                self.synthesize_stream_opus,
                TAG,
                operations.SYNTHESIZE_STREAM_OPUS,
                methods=["GET", "POST"],
            ),
            ApiRoute("/reference_audios", self.reference_audios, TAG, operations.REFERENCE_AUDIOS),
            ApiRoute(
                "/download_reference_audio/{audio_index}",
                self.download_reference_audio,
                TAG,
                operations.DOWNLOAD_REFERENCE_AUDIO,
            ),
            ApiRoute("/test", self.test, TAG, operations.TEST),
            ApiRoute("/test_stream", self.test_stream, TAG, operations.TEST_STREAM),
        ]

    @property
    def _ready(self) -> bool:
        return self.service.state is EngineState.READY

    async def root(self, request: Request) -> Response:
        if prefers_html(request.headers.get("accept", "")):
            return RedirectResponse("/player", 303, {"Vary": "Accept"})
        body: Root = {
            "message": "IndexTTS API 服务运行中",
            "version": __version__,
            "status": "running",
            "model_loaded": self._ready,
        }
        return JSONResponse(body, headers={"Vary": "Accept"})

    async def player(self, request: Request) -> Response:
        return FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def health(self, request: Request) -> Response:
        body: Health = {
            "status": HEALTH_STATUSES[self.service.state],
            "model_loaded": self._ready,
            "timestamp": time.time(),
        }
        return JSONResponse(body, 200 if self._ready else 503)

    async def model_info(self, request: Request) -> Response:
        info = self.service.engine.info
        body: ModelInfo = {
            "model_loaded": self._ready,
            "device": info.device,
            "is_fp16": info.is_fp16,
            "use_cuda_kernel": info.use_cuda_kernel,
            "model_version": info.model_version,
            "config_path": info.config_path,
            "model_dir": info.model_dir,
            "engine": info.name,
            "sample_rate": info.sample_rate_hz,
            "max_text_characters": self.settings.max_text_characters,
            "capabilities": {
                capability: capability in info.capabilities
                for capability in Capability
                if capability in info.capabilities or capability not in SHOWN_WHERE_PRESENT
            },
        }
        return JSONResponse(body)

    async def synthesize(self, request: Request) -> WholeSpeechResponse | SubtitleResponse:
        body = await parse_body(request, SynthesizeBody)
        if body.format == "wav":
            return self._whole(body)
        speech = self._speech_request(body)
        if speech.script:
            raise InvalidRequest(f"format {body.format} is not available for a dialogue; use wav", "format")
        return SubtitleResponse(self.service, speech, body.format, self.settings.send_timeout_s)

    async def synthesize_simple(self, request: Request) -> WholeSpeechResponse:
        return self._whole(await parse_body(request, SimpleBody))

    async def synthesize_stream(self, request: Request) -> SpeechResponse:
        body = await parse_body(request, StreamBody)
        headers = {
            "X-Sample-Rate": str(self.service.engine.info.sample_rate_hz),
            "X-Bit-Depth": "16",
            "X-Channels": "1",
            "Content-Disposition": "attachment; filename=synthesized_audio.pcm",
        }
        speech = self._speech_request(body)
        return SpeechResponse(self.service, speech, PcmEncoder(), headers, self.settings.send_timeout_s)

    async def synthesize_stream_opus(self, request: Request) -> Response | SpeechResponse:
        if request.method == "POST":
            body = await parse_body(request, OpusStreamBody)
        else:
            body = parse_query(request, OpusStreamBody)
        opus = {
            "X-Opus-Sample-Rate": "48000",
            "X-Opus-Bitrate": str(body.opus_bitrate),
            "X-Opus-Complexity": str(body.opus_complexity),
        }
        headers = {
            **(opus if body.format != "mp3" else {}),
            "X-Original-Sample-Rate": str(self.service.engine.info.sample_rate_hz),
            "X-Channels": "1",
            "X-Queue-Info": "sequential-processing",
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "X-Accel-Buffering": "no",
            "Content-Disposition": f"attachment; filename=synthesized_audio.{body.format}",
        }
        speech = self._speech_request(body, "body" if request.method == "POST" else "query")
        given = {"bitrate_bps": body.opus_bitrate, "complexity": body.opus_complexity}
        kind = FORMATS[body.format]
        if request.method == "HEAD":
            return head_response(kind.media_type, headers)
        # `opus_bitrate` does not apply to MP3, which uses its default.
        encoder = kind.create(**(given if body.format != "mp3" else {}))
        return SpeechResponse(self.service, speech, encoder, headers, self.settings.send_timeout_s)

    async def reference_audios(self, request: Request) -> Response:
        listed: list[ReferenceAudio] = [
            {
                "index": index,
                "path": voice.path.as_posix(),
                "exists": voice.path.is_file(),
                "filename": voice.path.name,
            }
            for index, voice in enumerate(self.voices.list())
        ]
        body: ReferenceAudios = {"reference_audios": listed, "total_count": len(listed)}
        return JSONResponse(body)

    async def download_reference_audio(self, request: Request) -> Response:
        text = request.path_params["audio_index"]
        try:
            path = self.voices.get(int(text)).path
            return AudioFileResponse(
                path,
                media_type=_MEDIA_TYPES[path.suffix.lower()],
                filename=path.name,
                stat_result=path.stat(),
            )
        except ValueError:
            raise HTTPException(404, f"audio_index must be a whole number, not {text[:20]}") from None
        except (VoiceIndexOutOfRange, VoiceFileMissing) as error:
            raise HTTPException(404, error_text(error)) from None
        except OSError:
            raise HTTPException(404, error_text(VoiceFileMissing(path.name))) from None

    async def test(self, request: Request) -> Response | WholeSpeechResponse:
        if request.method == "HEAD":
            return head_response("audio/wav")
        return self._whole(SynthesizeBody(text=_SMOKE_TEXT, use_fast_inference=True))

    async def test_stream(self, request: Request) -> Response:
        media_type = "text/plain; charset=utf-8"
        if request.method == "HEAD":
            return head_response(media_type)
        return StreamingResponse(_ticks(), media_type=media_type, headers={"X-Accel-Buffering": "no"})

    def _whole(self, body: SimpleBody) -> WholeSpeechResponse:
        headers = {"Content-Disposition": "attachment; filename=synthesized_audio.wav"}
        return WholeSpeechResponse(self.service, self._speech_request(body), headers, self.settings.send_timeout_s)

    def _speech_request(self, body: SimpleBody, place: str = "body") -> SpeechRequest:
        """Build the request of a body or a query.

        Raises:
            InvalidRequest: the text cannot be synthesised, or the index or the number of codes is out of range.
            VoiceFileMissing: the voice's file does not exist.
        """
        return self.requests.build(
            body.text,
            [self.voices.get(body.reference_audio_index)],
            body.generation() if isinstance(body, GenerationBody) else Generation(),
            body.granularity if isinstance(body, StreamBody) else Granularity.SENTENCE,
            place=place,
            max_codes_field="max_mel_tokens" if "max_mel_tokens" in body.model_fields_set else None,
            with_tags=True,
            sentence_batch=body.sentence_batch if isinstance(body, SynthesizeBody) else 1,
            verbose=isinstance(body, GenerationBody) and body.verbose,
        )


def prefers_html(accept: str) -> bool:
    """Whether an ``Accept`` header ranks ``text/html`` above JSON (RFC 9110, section 12.5.1)."""
    weights: dict[str, float] = {}
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((value for name, _, value in (p.partition("=") for p in parameters) if name.strip() == "q"), "1")
        try:
            weights[media_type] = float(weight)
        except ValueError:
            weights[media_type] = 0.0
    json_kinds = ("application/json", "application/*", "*/*")  # the most specific one applies
    json_weight = next((weights[kind] for kind in json_kinds if kind in weights), 0.0)
    return weights.get("text/html", 0.0) > json_weight


async def _ticks() -> AsyncIterator[str]:
    for number in range(1, 11):
        yield f"数据块 {number}/10 - 时间戳: {time.time()}\n"
        if number < 10:
            await asyncio.sleep(1)
