"""``POST /dev/captioned_speech``, as Kokoro-FastAPI has it: speech with the times of its words."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field
from starlette.requests import Request
from starlette.routing import BaseRoute
from typing_extensions import TypedDict

from streaming_server.api.http import Body, Dialect, ErrorShape, parse_body
from streaming_server.api.operations import (
    IGNORED_NOTE,
    SPEECH_REFUSALS,
    Answer,
    ApiRoute,
    Operation,
    Tag,
    described,
    ignored_header,
)
from streaming_server.api.requests import Name, Names, RequestBuilder, Text
from streaming_server.api.timed import TimedSpeechResponse
from streaming_server.audio.encoders import FORMATS
from streaming_server.audio.stretch import SPEED_MAX, SPEED_MIN
from streaming_server.domain import Generation
from streaming_server.errors import SpeechServerError
from streaming_server.settings import Settings
from streaming_server.speech.service import SpeechService
from streaming_server.speech.timeline import Passage, precision_of
from streaming_server.speech.voices import VoiceLibrary


class CaptionedBody(Body):
    model: Name | None = None
    """Accepts any name; the loaded model is used."""
    input: Annotated[Text, Field(examples=["The quick brown fox jumps over the lazy dog."])]
    """Not blank."""
    voice: Names | None = None
    """A voice by name; by default the first one."""
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Field(ge=SPEED_MIN, le=SPEED_MAX)] = 1.0
    stream: bool = True
    """One object a line during the synthesis; `false`: one object after it."""
    return_timestamps: bool = True
    ssml: bool = False
    """`true`: `input` is SSML; its times come with the last audio, and `marks` has those of its `mark` elements."""


@described
class WordTime(TypedDict):
    word: str
    start_time: float
    """In seconds, from the start of all audio."""
    end_time: float


@described
class MarkTime(TypedDict):
    name: str
    time: float
    """In seconds, from the start of all audio."""


@described
class CaptionedSpeech(TypedDict):
    audio: str
    """In base64; joined, the audio of all lines is one file."""
    audio_format: str
    timestamps: list[WordTime] | None
    """Of the words whose sentence ends with this audio."""
    alignment_precision: NotRequired[Literal["engine", "segment"]]
    """`engine`: measured; `segment`: the words of a sentence share its time."""
    marks: NotRequired[list[MarkTime]]
    """Of the `mark` elements of SSML."""


@described
class CaptionedErrorDetail(TypedDict):
    error: str
    message: str
    type: Literal["invalid_request_error", "server_error"]


class CaptionedError(TypedDict):
    detail: CaptionedErrorDetail


def _error_body(status: int, message: str, error: SpeechServerError | None) -> CaptionedError:
    if status < 500:
        return {"detail": {"error": "validation_error", "message": message, "type": "invalid_request_error"}}
    return {"detail": {"error": "processing_error", "message": message, "type": "server_error"}}


TAG = Tag("Kokoro-FastAPI", "Speech with the times of its words.")
_SPEECH = Operation(
    "Synthesise a text, with the time of each word",
    [Answer(f"One object a line; with `stream` false a single one. {IGNORED_NOTE}", CaptionedSpeech)],
    CaptionedBody,
    refusals=SPEECH_REFUSALS,
)


@dataclass(frozen=True, slots=True)
class CaptionedDialect(Dialect):
    """The route over one service."""

    service: SpeechService
    voices: VoiceLibrary
    requests: RequestBuilder
    settings: Settings
    shapes: ClassVar[Mapping[str, ErrorShape]] = {"/dev/captioned_speech": ErrorShape(_error_body, CaptionedError)}

    def routes(self) -> list[BaseRoute]:
        return [ApiRoute("/dev/captioned_speech", self.speech, TAG, _SPEECH, methods=["POST"])]

    async def speech(self, request: Request) -> TimedSpeechResponse:
        body = await parse_body(request, CaptionedBody)
        voice = self.voices.default if body.voice is None else await self.voices.require(body.voice)
        text = await self.requests.ssml(body.input, self.voices.require, "input") if body.ssml else body.input
        speech = self.requests.build(text, [voice], Generation(), None, field="input", speed=body.speed)
        encoder = FORMATS["ogg" if body.response_format == "opus" else body.response_format].create()

        def compose(audio: bytes, passages: Sequence[Passage]) -> Mapping[str, Any]:
            words: list[WordTime] = [
                {"word": word.text, "start_time": round(word.start_s, 3), "end_time": round(word.end_s, 3)}
                for passage in passages
                for word in passage.words()
            ]
            content: CaptionedSpeech = {
                "audio": base64.b64encode(audio).decode(),
                "audio_format": encoder.media_type,
                "timestamps": words if body.return_timestamps else None,
            }
            if passages and body.return_timestamps:
                content["alignment_precision"] = precision_of(passages)
            if marks := [mark for passage in passages for mark in passage.bookmarks]:
                content["marks"] = [{"name": mark.name, "time": round(mark.time_s, 3)} for mark in marks]
            return content

        return TimedSpeechResponse(
            self.service,
            speech,
            encoder,
            ignored_header(self.requests.ignored(speech)),
            self.settings.send_timeout_s,
            compose=compose,
            is_whole=not body.stream,
        )
