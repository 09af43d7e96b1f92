"""The OpenAI dialect: ``/v1/audio/speech``, its voices and models, and the forms that came before it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from streaming_server import __version__
from streaming_server.api import sse
from streaming_server.api.http import Dialect, ErrorShape, parse_body
from streaming_server.api.openai import schemas as operations
from streaming_server.api.openai.schemas import (
    FORMAT_NAMES,
    VOICES,
    Model,
    Models,
    OpenAIError,
    SpeechBody,
    TtsBody,
    TtsError,
    TtsUrlBody,
    Voices,
)
from streaming_server.api.operations import ApiRoute
from streaming_server.api.requests import EmotionFields, RequestBuilder, voice_names
from streaming_server.api.responses import Connection, SpeechResponse, WholeSpeechResponse
from streaming_server.audio.encoders import FORMATS
from streaming_server.domain import Emotion, Generation, Voice
from streaming_server.errors import InvalidRequest, SpeechServerError, VoiceUnknown
from streaming_server.settings import Settings
from streaming_server.speech.service import SpeechService
from streaming_server.speech.stream import SpeechStream
from streaming_server.speech.voices import VoiceLibrary

_NUMBERED = {name: f"voice_{number:02}" for number, name in enumerate(VOICES, 1)}
_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
_LONGEST_INPUT = 4096
_TOKENS_PER_SECOND = 50
"""Of the audio, for the usage count: one for each 20 ms."""
_MOST_EMOTION = 1.5
_EMOTION_SUM = "情感向量之和不能超过1.5，请调整后重试。"


def error_body(status: int, message: str, error: SpeechServerError | None) -> OpenAIError:
    """OpenAI's shape, all four keys."""
    code = "invalid_api_key" if status == 401 else None
    param = error.field or None if isinstance(error, InvalidRequest) and error.place == "body" else None
    return {
        "error": {
            "message": message,
            "type": "server_error" if status >= 500 else "invalid_request_error",
            "param": param,
            "code": code,
        }
    }


def tts_error_body(status: int, message: str, error: SpeechServerError | None) -> TtsError:
    """The shape of ``/tts_url`` and ``/tts``."""
    return {"status": "error", "error": message}


ERRORS = ErrorShape(error_body, OpenAIError)
TTS_ERRORS = ErrorShape(tts_error_body, TtsError)
SHAPES: Mapping[str, ErrorShape] = {
    "/v1/audio": ERRORS,
    "/v1/models": ERRORS,
    "/models": ERRORS,
}
PATH_SHAPES: Mapping[str, ErrorShape] = {
    "/audio/speech": ERRORS,
    "/audio/voices": ERRORS,
    "/tts_url": TTS_ERRORS,
    "/tts": TTS_ERRORS,
}


@dataclass(frozen=True, slots=True)
class OpenAIDialect(Dialect):
    """The routes over one service."""

    service: SpeechService
    voices: VoiceLibrary
    requests: RequestBuilder
    settings: Settings
    shapes: ClassVar = SHAPES
    path_shapes: ClassVar = PATH_SHAPES

    def routes(self) -> list[BaseRoute]:
        both = [
            route
            for prefix, tag in (("/v1", operations.TAG), ("", operations.SHORT_TAG))
            for route in (
                ApiRoute(f"{prefix}/audio/speech", self.speech, tag, operations.SPEECH, methods=["POST"]),
                ApiRoute(f"{prefix}/audio/voices", self.list_voices, tag, operations.VOICE_LIST),
                ApiRoute(f"{prefix}/models", self.models, tag, operations.MODELS),
                ApiRoute(f"{prefix}/models/{{model_id:path}}", self.model, tag, operations.MODEL),
            )
        ]
        return [
            *both,
            ApiRoute("/tts_url", self.tts_url, operations.EARLIER_TAG, operations.TTS_URL, methods=["POST"]),
            ApiRoute("/tts", self.tts, operations.EARLIER_TAG, operations.TTS, methods=["POST"]),
        ]

    async def speech(self, request: Request) -> SpeechResponse:
        body = await parse_body(request, SpeechBody)
        names = body.voice if isinstance(body.voice, str) else body.voice.id
        several = voice_names(names, "voice") if self.requests.has_speakers(body.input) else [names.strip()]
        is_told = body.instructions is not None and body.instructions.strip()
        speech = self.requests.build(
            body.input,
            [await self._voice(name) for name in several],
            Generation(),
            None,
            field="input",
            max_characters=_LONGEST_INPUT,
            with_tags=True,
            emotion=Emotion(text=body.instructions) if is_told else None,
            speed=body.speed,
        )
        name = body.response_format or self.settings.openai_default_format
        encoder = FORMATS[FORMAT_NAMES.get(name, name)].create()
        headers = sse.HEADERS
        if body.stream_format == "sse":
            # Not kept: what could be continued are the bytes inside the events, not the events.
            return SseSpeechResponse(self.service, speech, encoder, headers, self.settings.send_timeout_s, keep=False)
        return SpeechResponse(self.service, speech, encoder, headers, self.settings.send_timeout_s)

    async def list_voices(self, request: Request) -> Response:
        names = self._voice_names()
        body: Voices = {"voices": [{"id": name, "name": name.capitalize(), "language": "multi"} for name in names]}
        return JSONResponse(body)

    async def models(self, request: Request) -> Response:
        body: Models = {"object": "list", "data": [_model(name) for name in self._model_names()]}
        return JSONResponse(body)

    async def model(self, request: Request) -> Response:
        name = request.path_params["model_id"]
        if name not in self._model_names():
            raise HTTPException(404, f"there is no model {name[:80]!r}")
        return JSONResponse(_model(name))

    async def tts_url(self, request: Request) -> WholeSpeechResponse:
        body = await parse_body(request, TtsUrlBody)
        field, name = (
            ("audio_paths", body.audio_paths[0]) if body.audio_paths else ("spk_audio_path", body.spk_audio_path)
        )
        if name is None:
            raise InvalidRequest("audio_paths or spk_audio_path is required", "spk_audio_path")
        generation = Generation(seed=body.seed, max_text_tokens_per_sentence=body.max_text_tokens_per_sentence)
        return self._whole(body.text, await self._file(name, field), generation, await self._emotion(body))

    async def tts(self, request: Request) -> WholeSpeechResponse:
        body = await parse_body(request, TtsBody)
        return self._whole(body.text, await self._voice(body.character, "character"), Generation(), None)

    def _whole(self, text: str, voice: Voice, generation: Generation, emotion: Emotion | None) -> WholeSpeechResponse:
        speech = self.requests.build(text, [voice], generation, with_tags=True, emotion=emotion)
        return WholeSpeechResponse(self.service, speech, {}, self.settings.send_timeout_s)

    async def _emotion(self, body: TtsUrlBody) -> Emotion | None:
        """By the method that the body names.

        Raises:
            InvalidRequest: the method's own field is missing, or its numbers add up to too much.
        """
        fields = EmotionFields(
            ("emo_ref_path", body.emo_ref_path),
            ("emo_vec", body.emo_vec),
            ("emo_text", body.emo_text),
            body.emo_weight,
            body.emo_random,
        )
        field = fields.by_method(body.emo_control_method)
        if field == "emo_vec" and sum(body.emo_vec or ()) > _MOST_EMOTION + 1e-6:  # tenths do not add up exactly
            raise InvalidRequest(_EMOTION_SUM, field)
        return await self.requests.emotion(fields, field, self._file)

    async def _voice(self, name: str, field: str = "voice") -> Voice:
        """The voice of an id.

        Raises:
            VoiceUnknown: there is none; the sentence names those that there are.
        """
        voice = await self.voices.find(_NUMBERED.get(name, name)) or await self.voices.find(name)
        if voice is None:
            raise VoiceUnknown(name, self._voice_names(), field)
        return voice

    async def _file(self, name: str, field: str) -> Voice:
        """The voice of a file's name.

        Raises:
            VoiceUnknown: the reference folder has no such file.
        """
        voice = await self.voices.find(name)
        if voice is None:
            raise VoiceUnknown(name, [known.path.name for known in self.voices.list()], field)
        return voice

    def _voice_names(self) -> list[str]:
        known = [voice.name for voice in self.voices.all()]
        named = [name for name, stem in _NUMBERED.items() if stem in known or name in known]
        return list(dict.fromkeys([*named, *(name for name in known if name not in _NUMBERED.values())]))

    def _model_names(self) -> list[str]:
        return [self.service.engine.info.name, *_MODELS]


class SseSpeechResponse(SpeechResponse):
    """The encoded bytes as server-sent events, and the usage at their end."""

    async def respond(self, stream: SpeechStream, connection: Connection) -> None:
        piece = await stream.buffer.read(0)
        await self.announce(stream, connection, **{"Content-Type": f"{sse.MEDIA_TYPE}; charset=utf-8"})
        position = 0
        while piece:
            position += len(piece)
            audio = base64.b64encode(piece).decode()
            await connection.write(sse.event({"type": "speech.audio.delta", "audio": audio}))
            piece = await sse.kept_alive(stream.buffer.read(position), connection.write)
        given, made = len(self.request.text), round(stream.stats.audio_s * _TOKENS_PER_SECOND)
        usage = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
        await connection.write(sse.event({"type": "speech.audio.done", "usage": usage}))


def _model(name: str) -> Model:
    return {"id": name, "object": "model", "created": 0, "owned_by": f"streaming-server {__version__}"}
