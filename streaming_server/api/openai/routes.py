"""The OpenAI dialect: ``/v1/audio/speech``, voices and models, and the older ``/tts_url`` and ``/tts``."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from streaming_server import __version__
from streaming_server.api import sse
from streaming_server.api.channel import open_session
from streaming_server.api.http import Dialect, check_text, parse_body, status_of
from streaming_server.api.openai import schemas as operations
from streaming_server.api.openai.errors import ERRORS, PATH_SHAPES, SHAPES
from streaming_server.api.openai.schemas import (
    FORMAT_NAMES,
    MAX_SPEECH_BODY_BYTES,
    Model,
    Models,
    SpeechBody,
    TtsBody,
    TtsUrlBody,
)
from streaming_server.api.openai.session import SessionLimits, SpeechSession
from streaming_server.api.openai.voices import VoiceNames
from streaming_server.api.operations import ApiRoute, ignored_header
from streaming_server.api.requests import EmotionFields, RequestBuilder, voice_names
from streaming_server.api.responses import Connection, SpeechResponse, WholeSpeechResponse
from streaming_server.audio.encoders import FORMATS
from streaming_server.domain import Emotion, Generation, SpeechRequest, Voice
from streaming_server.errors import InvalidRequest, ReaderTooSlow, SpeechServerError
from streaming_server.settings import Settings
from streaming_server.speech.incremental import by_sentences
from streaming_server.speech.service import SpeechService
from streaming_server.speech.stream import SpeechStream
from streaming_server.speech.timeline import Passage
from streaming_server.speech.voices import VoiceLibrary

_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
_LONGEST_INPUT = 4096
QUEUE_KEEP_ALIVE_S = 5.0
"""Maximum time without data in an event stream."""
_MAX_SILENT_WAIT_S = 25.0
"""For the slot, without `stream_format: sse`: nothing keeps the connection alive, and LiveKit gives up after 30 s."""
_TOKENS_PER_SECOND = 50
"""Audio tokens per second for the usage count: one per 20 ms."""
_MOST_EMOTION = 1.5
_EMOTION_SUM = "情感向量之和不能超过1.5，请调整后重试。"


@dataclass(frozen=True, slots=True)
class OpenAIDialect(Dialect):
    """The OpenAI routes of one service."""

    service: SpeechService
    voices: VoiceLibrary
    requests: RequestBuilder
    settings: Settings
    session_limits: SessionLimits = SessionLimits()
    shapes: ClassVar = SHAPES
    path_shapes: ClassVar = PATH_SHAPES

    def routes(self) -> list[BaseRoute]:
        both = [
            route
            for prefix, tag in (("/v1", operations.TAG), ("", operations.SHORT_TAG))
            for route in (
                ApiRoute(f"{prefix}/audio/speech", self.speech, tag, operations.SPEECH, methods=["POST"]),
                ApiRoute(f"{prefix}/models", self.models, tag, operations.MODELS),
                ApiRoute(f"{prefix}/models/{{model_id:path}}", self.model, tag, operations.MODEL),
            )
        ]
        return [
            *both,
            WebSocketRoute("/v1/audio/speech/stream", self.speech_session),
            WebSocketRoute("/audio/speech/stream", self.speech_session),
            ApiRoute("/tts_url", self.tts_url, operations.EARLIER_TAG, operations.TTS_URL, methods=["POST"]),
            ApiRoute("/tts", self.tts, operations.EARLIER_TAG, operations.TTS, methods=["POST"]),
        ]

    async def speech(self, request: Request) -> SpeechResponse:
        body = await parse_body(request, SpeechBody, MAX_SPEECH_BODY_BYTES)
        async with AsyncExitStack() as files:
            given = None
            if body.ref_audio is not None:
                recording = self.requests.references.voice(body.ref_audio, (body.ref_text or "").strip())
                given = await files.enter_async_context(recording)
            speech = await self._speech(body, given)
            name = body.response_format or self.settings.openai_default_format
            encoder = FORMATS[FORMAT_NAMES.get(name, name)].create()
            is_sse = body.stream_format == "sse"
            if body.word_timestamps and not is_sse:
                raise InvalidRequest("word_timestamps needs stream_format sse", "word_timestamps")
            if body.word_timestamps and speech.script:
                raise InvalidRequest("word_timestamps is not available for a dialogue", "word_timestamps")
            if not is_sse:
                self.service.slot.check_wait(_MAX_SILENT_WAIT_S)
            headers = {**sse.HEADERS, **ignored_header(self.requests.ignored(speech))}
            # Events, and audio with a voice of this request only, cannot be resumed.
            keep = not is_sse and given is None
            timeout_s = self.settings.send_timeout_s
            kind: Callable[..., SpeechResponse] = SpeechResponse
            if is_sse:
                kind = partial(SseSpeechResponse, with_times=body.word_timestamps)
            return kind(self.service, speech, encoder, headers, timeout_s, keep=keep, resources=files.pop_all())
        raise AssertionError("unreachable")

    async def _speech(self, body: SpeechBody, given: Voice | None) -> SpeechRequest:
        """Build the request of a body; ``given`` is the voice that was sent with it.

        Raises:
            InvalidRequest: as `RequestBuilder.build`.
            VoiceUnknown: the voice does not exist.
        """
        names = body.voice if isinstance(body.voice, str) else body.voice.id
        text = await self.requests.ssml(body.input, self._voice, "input") if body.ssml else body.input
        is_dialogue = not body.ssml and self.requests.has_speakers(body.input)
        several = voice_names(names, "voice") if is_dialogue else [names.strip()]
        return self.requests.build(
            text,
            [given] if given else [await self._voice(name) for name in several],
            Generation(seed=body.seed),
            None,
            field="input",
            max_characters=_LONGEST_INPUT,
            with_tags=True,
            emotion=Emotion(text=body.instructions) if (body.instructions or "").strip() else None,
            speed=body.speed,
            language=body.language or "",
        )

    async def speech_session(self, websocket: WebSocket) -> None:
        with open_session(websocket, "openai"):
            await SpeechSession(websocket, self.requests, self._voice, self.session_limits).run()

    async def models(self, request: Request) -> Response:
        body: Models = {"object": "list", "data": [_model(name) for name in self._model_names()]}
        return JSONResponse(body)

    async def model(self, request: Request) -> Response:
        name = request.path_params["model_id"]
        if name not in self._model_names():
            raise HTTPException(404, f"unknown model {name[:80]!r}")
        return JSONResponse(_model(name))

    async def tts_url(self, request: Request) -> WholeSpeechResponse:
        body = await parse_body(request, TtsUrlBody)
        field, name = (
            ("audio_paths", body.audio_paths[0]) if body.audio_paths else ("spk_audio_path", body.spk_audio_path)
        )
        if name is None:
            raise InvalidRequest("audio_paths or spk_audio_path is required", "spk_audio_path")
        generation = Generation(seed=body.seed, max_text_tokens_per_sentence=body.max_text_tokens_per_sentence)
        return self._whole(body.text, await self.voices.require(name, field), generation, await self._emotion(body))

    async def tts(self, request: Request) -> WholeSpeechResponse:
        body = await parse_body(request, TtsBody)
        return self._whole(body.text, await self._voice(body.character, "character"), Generation(), None)

    def _whole(self, text: str, voice: Voice, generation: Generation, emotion: Emotion | None) -> WholeSpeechResponse:
        speech = self.requests.build(text, [voice], generation, with_tags=True, emotion=emotion)
        return WholeSpeechResponse(self.service, speech, {}, self.settings.send_timeout_s)

    async def _emotion(self, body: TtsUrlBody) -> Emotion | None:
        """Build the emotion for the method in the body.

        As in the earlier servers, method 1 without a recording is the voice's own emotion, and method 3 without a
        description reads it from the text.

        Raises:
            InvalidRequest: the method's field is missing, or the sum of its numbers is too large.
        """
        if body.emo_control_method == 1 and body.emo_ref_path is None:
            return None
        description = body.emo_text
        if body.emo_control_method == 3 and not (description or "").strip():
            description = check_text(body.text, self.settings.max_text_characters)
        fields = EmotionFields(
            ("emo_ref_path", body.emo_ref_path),
            ("emo_vec", body.emo_vec),
            ("emo_text", description),
            body.emo_weight,
            body.emo_random,
        )
        field = fields.by_method(body.emo_control_method)
        if field == "emo_vec" and sum(body.emo_vec or ()) > _MOST_EMOTION + 1e-6:  # tolerance for rounding
            raise InvalidRequest(_EMOTION_SUM, field)
        return await self.requests.emotion(fields, field, self.voices.require)

    async def _voice(self, name: str, field: str = "voice") -> Voice:
        """As `VoiceNames.find`."""
        return await VoiceNames(self.voices).find(name, field)

    def _model_names(self) -> list[str]:
        return [self.service.engine.info.name, *_MODELS]


class SseSpeechResponse(SpeechResponse):
    """The encoded bytes as server-sent events, followed by the usage.

    The headers are sent with the first audio or after `QUEUE_KEEP_ALIVE_S`, followed by comments, so that clients with
    short read timeouts can wait in the queue. A later failure is sent as an event and closes the connection.
    """

    def __init__(
        self, service: SpeechService, request: SpeechRequest, *options: Any, with_times: bool, **others: Any
    ) -> None:
        """``with_times``: send the times of the words after the audio of each sentence."""
        super().__init__(service, by_sentences(request) if with_times else request, *options, **others)
        self.characters = len(request.text)
        self._with_times = with_times

    async def respond(self, stream: SpeechStream, connection: Connection) -> str | None:
        async def write(comment: bytes) -> None:
            if not connection.started:
                await self._announce_events(stream, connection)
            await connection.write(comment)

        try:
            first = await sse.kept_alive(stream.buffer.read_timed(0), write, QUEUE_KEEP_ALIVE_S)
            if not connection.started:
                await self._announce_events(stream, connection)
            await self._events(stream, connection, *first)
        except ReaderTooSlow:
            raise
        except SpeechServerError as error:
            if connection.started:
                detail = ERRORS.body(status_of(error, ERRORS), str(error), error)
                await connection.write(sse.event({"type": "speech.audio.error", **detail}))
            raise
        return None

    async def _announce_events(self, stream: SpeechStream, connection: Connection) -> None:
        await self.announce(stream, connection, **{"Content-Type": f"{sse.MEDIA_TYPE}; charset=utf-8"})

    async def _events(
        self, stream: SpeechStream, connection: Connection, piece: bytes, passage: Passage | None
    ) -> None:
        position = 0
        while piece or passage is not None:
            position += len(piece)
            if piece:
                audio = base64.b64encode(piece).decode()
                await connection.write(sse.event({"type": "speech.audio.delta", "audio": audio}))
            if passage is not None and self._with_times:
                await connection.write(sse.event(_times_of(passage)))
            following = stream.buffer.read_timed(position)
            piece, passage = await sse.kept_alive(following, connection.write, QUEUE_KEEP_ALIVE_S)
        given, made = self.characters, round(stream.stats.audio_s * _TOKENS_PER_SECOND)
        usage = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
        await connection.write(sse.event({"type": "speech.audio.done", "usage": usage}))


def _times_of(passage: Passage) -> dict[str, Any]:
    return {
        "type": "speech.audio.timestamps",
        "words": [
            {"word": word.text, "start": round(word.start_s, 3), "end": round(word.end_s, 3)}
            for word in passage.words()
        ],
        "alignment_precision": passage.precision,
        "marks": [{"name": mark.name, "time": round(mark.time_s, 3)} for mark in passage.bookmarks],
    }


def _model(name: str) -> Model:
    return {"id": name, "object": "model", "created": 0, "owned_by": f"streaming-server {__version__}"}
