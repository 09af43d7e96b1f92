"""Bodies, answers and operations of the OpenAI dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field
from typing_extensions import TypedDict

from streaming_server.api.http import Body
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
from streaming_server.api.references import MAX_REFERENCE_CHARACTERS, Reference
from streaming_server.api.requests import Description, Name, Names, PositiveInt, Seed, Share, Text
from streaming_server.audio.encoders import FORMATS
from streaming_server.audio.stretch import SPEED_MAX, SPEED_MIN
from streaming_server.errors import InvalidRequest

TAG = Tag("OpenAI", "The API of OpenAI's clients; set their base URL to this server.")
SHORT_TAG = Tag("OpenAI, without /v1", "The same routes for clients with a base URL without `/v1`.")
EARLIER_TAG = Tag("Earlier forms", "Routes of earlier IndexTTS servers; each returns a complete WAV file.")

VOICES = ("alloy", "echo", "fable", "onyx", "nova", "shimmer", "ash", "ballad", "coral", "sage", "verse")
"""The names of ``voice_01`` … ``voice_11``."""
ResponseFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
FORMAT_NAMES: Mapping[str, str] = {"opus": "ogg"}
"""Names of encoders that differ from those of the dialect."""


MAX_SPEECH_BODY_BYTES = MAX_REFERENCE_CHARACTERS + 256 * 1024
"""Maximum body size of ``/v1/audio/speech``, which may contain a recording."""


class VoiceId(Body):
    id: Names


class SpeechBody(Body):
    model: Annotated[Name, Field(examples=["tts-1"])]
    """Accepts any name; the loaded model is used."""
    input: Annotated[
        Text, Field(examples=["The quick brown fox jumps over the lazy dog."], json_schema_extra={"maxLength": 4096})
    ]
    """Not blank, at most 4096 characters."""
    voice: Names | VoiceId = VOICES[0]
    """An id of `GET /v1/audio/voices`."""
    response_format: ResponseFormat | None = None
    """By default the server's setting `OPENAI_DEFAULT_FORMAT` (`mp3`). `pcm` is signed 16-bit little-endian mono at
    24000 Hz."""
    speed: Annotated[float, Field(ge=SPEED_MIN, le=SPEED_MAX)] = 1.0
    """Speaking rate; the pitch does not change."""
    instructions: Description | None = None
    """A description of an emotion or style, for engines that support it."""
    stream_format: Literal["audio", "sse"] = "audio"
    """`sse`: the audio in base64 as server-sent events."""
    word_timestamps: bool = False
    """With `sse`: an event with the times of the words after the audio of each sentence."""
    ssml: bool = False
    """`true`: `input` is SSML; see docs/api.md for the supported elements."""
    ref_audio: Reference | None = None
    """A recording, in a format of `/v1/audio/voices`, whose voice is used for this request in place of `voice`: base64,
    a `data:` URL, or a URL of a host that the setting `REF_AUDIO_HOSTS` names."""
    ref_text: Description | None = None
    """Transcript of the recording, for engines that use it."""
    language: Name | None = None
    """The language of the text, a tag such as `de` or an English name, for engines that have a choice; by default the
    text decides."""
    seed: Seed | None = None
    """The same seed and request give the same audio, if the engine supports seeds."""


class SessionConfig(Body):
    """The message ``session.config`` of ``/v1/audio/speech/stream``."""

    model: Name | None = None
    """Accepts any name; the loaded model is used."""
    voice: Names | VoiceId | None = None
    speaker: Names | None = None
    """Alternative name of ``voice``."""
    response_format: Literal["wav", "pcm", "flac", "mp3", "opus"] = "wav"
    speed: Annotated[float, Field(ge=SPEED_MIN, le=SPEED_MAX)] | None = None
    """By default 1."""
    instructions: Description | None = None
    language: Name | None = None
    """The language of the text, a tag such as `de` or an English name, for engines that have a choice; by default the
    text decides."""
    ref_audio: Reference | None = None
    """As in `SpeechBody`, for the rest of the session."""
    ref_text: Description | None = None
    task_type: Literal["CustomVoice", "Base"] | None = None
    """Both use an existing voice; ``VoiceDesign`` is rejected."""
    seed: Seed | None = None
    max_new_tokens: PositiveInt | None = None
    stream_audio: bool = False
    """Raw samples as they are generated instead of one file per sentence."""
    split_granularity: Literal["none", "sentence", "clause"] = "none"
    word_timestamps: bool = False

    @property
    def voice_name(self) -> str:
        voice = self.voice or self.speaker or VOICES[0]
        return voice if isinstance(voice, str) else voice.id

    def check(self) -> None:
        """
        Raises:
            InvalidRequest: the options exclude each other.
        """
        if self.stream_audio and self.response_format != "pcm":
            raise InvalidRequest(f"stream_audio needs response_format pcm, not {self.response_format}", "stream_audio")
        if self.stream_audio and self.speed not in (None, 1):
            raise InvalidRequest(f"stream_audio needs speed 1, not {self.speed:g}", "stream_audio")
        if self.word_timestamps and not self.stream_audio:
            raise InvalidRequest("word_timestamps needs stream_audio", "word_timestamps")


class TtsUrlBody(Body):
    text: Annotated[Text, Field(examples=["你好，欢迎使用语音合成。"])]
    """Not blank."""
    audio_paths: Annotated[list[Name], Field(min_length=1, max_length=16, fail_fast=True)] | None = None
    """Files of the reference folder, of which the first is the voice; or `spk_audio_path`."""
    seed: Seed | None = None
    """With the same seed, a request gives the same audio on the same machine, if the engine supports it."""
    spk_audio_path: Annotated[Name | None, Field(examples=["voice_01.wav"])] = None
    """A file of the reference folder: the voice. Required without `audio_paths`."""
    emo_control_method: Annotated[int, Field(ge=0, le=3)] = 0
    """Emotion: 0 as the voice itself, 1 as in `emo_ref_path`, 2 by `emo_vec`, 3 by `emo_text`."""
    emo_ref_path: Name | None = None
    """A file in the reference folder; without it, method 1 is method 0."""
    emo_weight: Share = 1.0
    """Strength of the emotion."""
    emo_vec: (
        Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=8, max_length=8, fail_fast=True)] | None
    ) = None
    """Happy, angry, sad, afraid, disgusted, melancholic, surprised, calm; their sum is at most 1.5."""
    emo_text: Description | None = None
    """A description of the emotion; without it, method 3 reads the emotion from `text`."""
    emo_random: bool = False
    """Choose a random rendering of the emotion for each request."""
    max_text_tokens_per_sentence: PositiveInt = 120
    """Longer sentences are split."""


class TtsBody(Body):
    text: Annotated[Text, Field(examples=["你好，欢迎使用语音合成。"])]
    """Not blank."""
    character: Annotated[Name, Field(examples=[VOICES[0]])]
    """An id of `GET /v1/audio/voices`."""


@described
class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    """UNIX seconds; 0 where unknown."""
    owned_by: str


class Models(TypedDict):
    object: Literal["list"]
    data: list[Model]


_MEDIA_TYPES = [FORMATS[FORMAT_NAMES.get(name, name)].media_type for name in get_args(ResponseFormat)]
_WHOLE_WAV = Answer("The complete WAV file, 16-bit mono at the model's sampling rate.", None, ["audio/wav"])

SPEECH = Operation(
    "Synthesise a text",
    [
        Answer(
            "The audio, streamed during synthesis. With `stream_format` `sse`, `speech.audio.delta` events, "
            "`speech.audio.timestamps` events if `word_timestamps` is true, and a final `speech.audio.done` event with "
            f"the usage. {IGNORED_NOTE}",
            None,
            [*_MEDIA_TYPES, "text/event-stream"],
            STREAM_HEADERS,
        )
    ],
    SpeechBody,
    parameters=[RESUMABLE],
    refusals=SPEECH_REFUSALS,
)
MODELS = Operation(
    "List the models",
    [
        Answer(
            "The loaded model and OpenAI's model names; to a request with the header `xi-api-key`, ElevenLabs' list.",
            Models | list[dict[str, object]],
        )
    ],
)
MODEL = Operation(
    "Get a model",
    [Answer("The model.", Model)],
    parameters=[Parameter("model_id", "path", "An id of the list.", Annotated[str, Field(examples=["tts-1"])])],
    refusals=[404],
)
TTS_URL = Operation(
    "Synthesise in the voice of a file",
    [_WHOLE_WAV],
    TtsUrlBody,
    refusals=SPEECH_REFUSALS,
    description="`audio_paths` and `seed` belong to the first version of the route, the other fields to the second.",
)
TTS = Operation("Synthesise in the voice of a character", [_WHOLE_WAV], TtsBody, refusals=SPEECH_REFUSALS)
