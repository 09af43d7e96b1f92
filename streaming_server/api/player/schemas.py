"""Bodies, answers and operations of the player's routes; ``/openapi.json`` is made from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field
from typing_extensions import TypedDict

from streaming_server.api.operations import (
    IGNORED_NOTE,
    RESUMABLE,
    SPEECH_REFUSALS,
    STREAM_HEADERS,
    Answer,
    Operation,
    Parameter,
    Tag,
    described,
)
from streaming_server.api.requests import (
    Description,
    EmotionNumbers,
    Name,
    Names,
    PositiveInt,
    SamplingBody,
    Seed,
    Share,
    Text,
)
from streaming_server.audio.encoders import FORMATS
from streaming_server.audio.opus import BITRATE_BPS, COMPLEXITY
from streaming_server.audio.stretch import SPEED_MAX, SPEED_MIN
from streaming_server.domain import Gender, Granularity
from streaming_server.speech.timeline import Precision

TAG = Tag(
    "Player",
    "The routes of the page at `/player`: voices by name, dialogues, emotions, speed, language, sampling and every "
    "format in one request.",
)
VoiceKind = Literal["preset", "recording", "upload"]
StreamFormat = Literal["ogg", "webm", "mp3", "aac", "flac", "wav", "pcm"]


class PlayerSpeechBody(SamplingBody):
    refused: ClassVar[Mapping[str, str]] = {
        "ssml": "ssml is not supported by this route; use /v1/audio/speech",
        "ref_audio": "ref_audio is not supported by this route; use /v1/audio/speech, or upload the recording",
        "instructions": "instructions is not supported by this route; use emo_text",
    }

    text: Annotated[Text, Field(examples=["[SPEAKER0] Good morning. [SPEAKER1] Good morning!"])]
    """Not blank. `[SPEAKERn]` tags make it a dialogue."""
    voice: Annotated[Names | None, Field(examples=["voice_01,voice_05"])] = None
    """A name of `GET /player/voices` or of `GET /v1/audio/voices`, or the id of an upload; for a dialogue one for each
    speaker, separated by commas.
    By default the first voice."""
    emo_text: Description | None = None
    """The emotion in words. At most one of `emo_text`, `emo_vector` and `emo_audio` may be given."""
    emo_vector: EmotionNumbers | None = None
    """Happy, angry, sad, afraid, disgusted, melancholic, surprised, calm."""
    emo_audio: Name | None = None
    """The recording whose emotion to take; as `voice`."""
    emo_weight: Share = 1.0
    """Strength of the emotion."""
    speed: Annotated[float, Field(ge=SPEED_MIN, le=SPEED_MAX)] = 1.0
    """Speaking rate; the pitch does not change."""
    language: Name | None = None
    """The language of the text, a tag such as `de` or an English name, for engines that have a choice; by default the
    text decides."""
    max_text_tokens_per_sentence: PositiveInt = 120
    """Longer sentences are split."""
    seed: Seed | None = None
    """With the same seed, a request gives the same audio on the same machine, if the engine supports it."""
    stream_granularity: Literal["token", "sentence"] = "token"
    """`token`: audio while the model decodes; `sentence`: one complete sentence at a time."""
    verbose: bool = False
    """Log the details of this request on the server."""
    format: StreamFormat = "ogg"
    """`pcm` is signed 16-bit little-endian mono at the rate in `X-Sample-Rate`."""
    opus_bitrate: Annotated[int, Field(ge=BITRATE_BPS[0], le=BITRATE_BPS[-1])] = 32000
    """In bit/s; for `ogg` and `webm`."""
    opus_complexity: Annotated[int, Field(ge=COMPLEXITY[0], le=COMPLEXITY[-1])] = 10
    """Effort of the encoder; for `ogg` and `webm`."""

    @property
    def granularity(self) -> Granularity | None:
        return Granularity(self.stream_granularity) if "stream_granularity" in self.model_fields_set else None


@described
class PlayerVoice(TypedDict):
    name: str
    """The name that requests use."""
    title: str
    """The name to show."""
    languages: list[str]
    """BCP 47 codes; empty where the voice is made for none in particular."""
    gender: Gender | None
    kind: VoiceKind
    """A voice of the engine, a recording of the reference folder, or an upload of `POST /v1/audio/voices`."""
    index: int | None
    """The index of `GET /reference_audios`; null for a voice that is no file of the reference folder."""
    available: bool
    """False if the file is gone."""
    sample_url: str | None
    """The path of the recording on this server; null for a voice without one in the reference folder."""


class PlayerVoices(TypedDict):
    voices: list[PlayerVoice]


_MEDIA_TYPES = [FORMATS[name].media_type for name in get_args(StreamFormat) if name != "pcm"]


@described
class PlayerWord(TypedDict):
    text: str
    """With its punctuation."""
    start: float
    """Seconds from the start of the audio."""
    end: float
    space: bool | None
    """Whether white space follows it in the text; null for the last word of a passage."""


@described
class PlayerWords(TypedDict):
    complete: bool
    """False while the stream is being synthesised; more words may follow."""
    duration: float
    """Seconds of audio that have been synthesised."""
    precision: Precision
    """`engine`: measured. `segment`: the words of a passage share its time by their lengths."""
    words: list[PlayerWord]
    """Empty for a dialogue."""


VOICES = Operation(
    "List the voices",
    [
        Answer(
            "The recordings, then the engine's presets; only the presets where the engine does not clone.", PlayerVoices
        )
    ],
)
SPEECH = Operation(
    "Synthesise a text or a dialogue",
    [
        Answer(
            f"The audio, streamed during synthesis. {IGNORED_NOTE}",
            None,
            [
                *(FORMATS[name].media_type for name in get_args(StreamFormat) if name != "pcm"),
                "application/octet-stream",
            ],
            {**STREAM_HEADERS, "X-Sample-Rate": "The rate of the model, and of `pcm`, in Hz."},
        )
    ],
    PlayerSpeechBody,
    parameters=[RESUMABLE],
    refusals=SPEECH_REFUSALS,
)
WORDS = Operation(
    "Get the duration of a stream and the times of its words",
    [Answer("The words that have been synthesised.", PlayerWords)],
    parameters=[Parameter("stream_id", "path", "The `X-Stream-Id` of a response.")],
    refusals=[404],
)
