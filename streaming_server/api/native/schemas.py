"""Bodies, answers and operations of the native dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import TypedDict

from streaming_server.api.http import Body, Problem
from streaming_server.api.operations import (
    RESUMABLE,
    SPEECH_REFUSALS,
    STREAM_HEADERS,
    Answer,
    Operation,
    Parameter,
    Tag,
    described,
)
from streaming_server.api.requests import PositiveInt, SamplingBody, Seed, Text
from streaming_server.audio.encoders import FORMATS
from streaming_server.audio.opus import BITRATE_BPS, COMPLEXITY
from streaming_server.domain import Capability, Granularity
from streaming_server.speech import captions
from streaming_server.speech.service import EngineState

SHOWN_WHERE_PRESENT = frozenset(
    {Capability.TOKEN_STREAMING, Capability.DIALOGUE, Capability.SCENE, Capability.SMART_VOICE}
)
"""Capabilities that ``/model_info`` lists only if the engine has them; other missing ones are listed as false."""

TAG = Tag(
    "Native",
    "Streaming of PCM and Ogg Opus, complete WAV files, reference voices and server status.",
)


_OTHER_VOICES = ("voice", "prompt_audio_url", "prompt_audio_id", "ref_audio", "speaker")


class SimpleBody(Body):
    refused: ClassVar[Mapping[str, str]] = {
        name: f"{name} is not supported by this route; choose the voice with reference_audio_index"
        for name in _OTHER_VOICES
    }

    text: Annotated[Text, Field(examples=["你好，欢迎使用语音合成。"])]
    """Text to synthesise; must not be blank."""
    reference_audio_index: int = 0
    """An index of `GET /reference_audios`."""


class GenerationBody(SimpleBody, SamplingBody):
    verbose: bool = False
    """Log the details of this request on the server."""
    max_text_tokens_per_sentence: PositiveInt = 120
    """Longer sentences are split."""
    seed: Seed | None = None
    """With the same seed, a request gives the same audio on the same machine, if the engine supports it."""


class SynthesizeBody(GenerationBody):
    use_fast_inference: bool = False
    """Synthesise several sentences as a batch."""
    format: Literal["wav", "srt", "vtt"] = "wav"
    """`srt` and `vtt`: the subtitles of the WAV file that the same request makes."""
    sentences_bucket_max_size: PositiveInt = 2
    """Maximum batch size; used with `use_fast_inference` only."""

    @property
    def sentence_batch(self) -> int:
        return self.sentences_bucket_max_size if self.use_fast_inference else 1


class StreamBody(GenerationBody):
    stream_granularity: Literal["token", "sentence"] = "token"
    """`token`: audio while the model decodes; `sentence`: one complete sentence at a time."""

    @property
    def granularity(self) -> Granularity | None:
        return Granularity(self.stream_granularity) if "stream_granularity" in self.model_fields_set else None


class OpusStreamBody(StreamBody):
    format: Literal["ogg", "webm", "mp3"] = "ogg"
    opus_bitrate: Annotated[int, Field(ge=BITRATE_BPS[0], le=BITRATE_BPS[-1])] = 32000
    """In bit/s; not for `mp3`."""
    opus_complexity: Annotated[int, Field(ge=COMPLEXITY[0], le=COMPLEXITY[-1])] = 10
    """Effort of the encoder; not for `mp3`."""


@described
class NativeError(TypedDict):
    detail: str | Sequence[Problem]
    """A message; for status 422, a list of problems by field."""


@described
class Root(TypedDict):
    message: str
    version: str
    status: Literal["running"]
    model_loaded: bool


HealthStatus = Literal["healthy", "loading", "unhealthy"]
HEALTH_STATUSES: Mapping[EngineState, HealthStatus] = {
    EngineState.READY: "healthy",
    EngineState.LOADING: "loading",
    EngineState.FAILED: "unhealthy",
}


@described
class Health(TypedDict):
    status: HealthStatus
    model_loaded: bool
    timestamp: float
    """UNIX seconds."""


@described
class ModelInfo(TypedDict):
    model_loaded: bool
    device: str
    is_fp16: bool
    use_cuda_kernel: bool
    model_version: str
    config_path: str
    model_dir: str
    engine: str
    sample_rate: int
    """In Hz."""
    max_text_characters: int
    """Maximum number of characters of a text."""
    capabilities: dict[str, bool]
    """Capabilities of the engine by name."""


@described
class ReferenceAudio(TypedDict):
    index: int
    path: str
    exists: bool
    filename: str


@described
class ReferenceAudios(TypedDict):
    reference_audios: list[ReferenceAudio]
    total_count: int


_DISPOSITION = {"Content-Disposition": "A suggested file name."}
_OPUS_HEADERS = {
    **STREAM_HEADERS,
    **_DISPOSITION,
    "X-Opus-Sample-Rate": "48000 Hz; not for `mp3`.",
    "X-Opus-Bitrate": "The requested bitrate, in bit/s; not for `mp3`.",
    "X-Opus-Complexity": "The requested complexity; not for `mp3`.",
    "X-Original-Sample-Rate": "The sampling rate of the model, in Hz.",
    "X-Channels": "1.",
    "X-Queue-Info": "`sequential-processing`: requests are processed one at a time.",
}
_WHOLE_WAV = Answer(
    "The complete WAV file, 16-bit mono at the model's sampling rate.", None, ["audio/wav"], _DISPOSITION
)

ROOT = Operation(
    "Get the server status",
    [
        Answer("The server is running.", Root),
        Answer("Redirects browsers to the player page.", None, [], {"Location": "The page."}, 303),
    ],
)
PLAYER = Operation("Get the player page", [Answer("The page.", None, ["text/html"])])
HEALTH = Operation(
    "Check the health of the server",
    [Answer("The model is ready.", Health), Answer("The model is loading, or failed to load.", Health, status=503)],
)
MODEL_INFO = Operation("Get information on the model", [Answer("The loaded model and its capabilities.", ModelInfo)])
SYNTHESIZE = Operation(
    "Synthesise a text to a WAV file, or write its subtitles",
    [
        replace(
            _WHOLE_WAV,
            media_types=[*_WHOLE_WAV.media_types, *(media_type for media_type, _ in captions.FORMATS.values())],
        )
    ],
    SynthesizeBody,
    refusals=SPEECH_REFUSALS,
)
SYNTHESIZE_SIMPLE = Operation(
    "Synthesise a text to a WAV file with default parameters", [_WHOLE_WAV], SimpleBody, refusals=SPEECH_REFUSALS
)
SYNTHESIZE_STREAM = Operation(
    "Synthesise a text as a PCM stream",
    [
        Answer(
            "Signed 16-bit little-endian mono samples, streamed during synthesis.",
            None,
            ["application/octet-stream"],
            {
                **STREAM_HEADERS,
                **_DISPOSITION,
                "X-Sample-Rate": "The sampling rate, in Hz.",
                "X-Bit-Depth": "16.",
                "X-Channels": "1.",
            },
        )
    ],
    StreamBody,
    parameters=[RESUMABLE],
    refusals=SPEECH_REFUSALS,
)
SYNTHESIZE_STREAM_OPUS = Operation(
    "Synthesise a text as an Ogg Opus, WebM or MP3 stream",
    [
        Answer(
            "Ogg Opus, WebM with Opus, or MP3, playable while it is received.",
            None,
            [FORMATS[name].media_type for name in ("ogg", "webm", "mp3")],
            _OPUS_HEADERS,
        )
    ],
    OpusStreamBody,
    parameters=[RESUMABLE],
    refusals=SPEECH_REFUSALS,
    description="GET takes the fields as query parameters, so that a media element can play the URL.",
)
REFERENCE_AUDIOS = Operation("List the reference voices", [Answer("Sorted by file name.", ReferenceAudios)])
DOWNLOAD_REFERENCE_AUDIO = Operation(
    "Download a reference recording",
    [Answer("The file.", None, ["audio/*"], _DISPOSITION)],
    parameters=[
        Parameter(
            "audio_index",
            "path",
            "An index of `GET /reference_audios`.",
            Annotated[int, Field(ge=0, examples=[0])],
        )
    ],
    refusals=[404, 416],
)
TEST = Operation("Synthesise a fixed test sentence", [_WHOLE_WAV], refusals=SPEECH_REFUSALS)
TEST_STREAM = Operation(
    "Stream ten lines, one per second, to detect buffering proxies", [Answer("The lines.", None, ["text/plain"])]
)
