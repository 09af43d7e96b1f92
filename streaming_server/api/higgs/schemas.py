"""Bodies, answers and operations of the HiggsAudio dialect."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from streaming_server.api.http import Body
from streaming_server.api.operations import SPEECH_REFUSALS, Answer, Operation, Tag, described
from streaming_server.api.requests import Name, Names, PositiveInt, Seed, Share, Text
from streaming_server.domain import Capability

TAG = Tag("HiggsAudio", "The API of HiggsAudio clients: dialogues and scenes, complete audio as JSON, event streams.")

DEFAULT_SCENE = "quiet_indoor"
DONE_MESSAGE = "音频生成成功"
FEATURES = {
    "single": "单说话人音频生成",
    Capability.DIALOGUE: "多说话人音频生成",
    Capability.VOICE_CLONING: "语音克隆",
    Capability.SMART_VOICE: "智能语音",
    Capability.SCENE: "场景描述",
    "stream": "流式生成",
}
"""Feature names by capability, in list order; the first, second and last are supported with any engine."""
OWN_FEATURES = frozenset({"single", Capability.DIALOGUE, "stream"})


class SamplingBody(Body):
    text: Annotated[Text, Field(examples=["[SPEAKER0] 你好。 [SPEAKER1] Hello!"])]
    """Text, or a dialogue with `[SPEAKER0]`, `[SPEAKER1]` … before each turn; must not be blank."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_k: Annotated[int, Field(ge=1, le=100)] | None = 50
    """Null: no limit."""
    top_p: Share = 0.95
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 2048
    """Maximum number of audio codes per piece of the text."""
    seed: Seed | None = None
    """The same seed, request and engine give the same audio."""


class GenerateBody(SamplingBody):
    ref_audio: Annotated[Names | None, Field(examples=["belinda,voice_01"])] = None
    """A name of `GET /voices`; for a dialogue several, separated by commas: the first for `[SPEAKER0]`."""
    scene_prompt: Name | None = DEFAULT_SCENE
    """A name of `GET /scenes`; null for none."""
    ras_win_len: Annotated[int, Field(ge=-4096, le=4096)] = 7
    """Repetition-aware sampling: window length in codes; 0 or less disables it."""
    ras_win_max_num_repeat: Annotated[int, Field(ge=1, le=4096)] = 2
    """Maximum number of repetitions of a code in the window before it is resampled."""
    chunk_method: Literal["speaker", "word"] | None = None
    """How the text is split into pieces; null does not split it."""
    chunk_max_word_num: PositiveInt = 200
    """Maximum number of words per piece, with `word`; a Han character counts as one."""
    chunk_max_num_turns: PositiveInt = 1
    """Maximum number of turns per piece, with `speaker`."""
    generation_chunk_buffer_size: Annotated[int, Field(ge=0, le=4096)] | None = None
    """Number of previous pieces used as context; null for all."""


class UploadBody(SamplingBody):
    ref_audio_file: bytes | None = None
    """A recording of the voice."""


class HiggsError(TypedDict):
    success: Literal[False]
    message: str


@described
class Info(TypedDict):
    model_name: str
    device: str
    is_loaded: bool
    max_new_tokens: int
    supported_features: list[str]
    """Features of the loaded engine."""


class PromptVoice(TypedDict):
    name: str
    file: str
    type: str


class PromptVoices(TypedDict):
    voices: list[PromptVoice]
    count: int


class ListedScene(TypedDict):
    name: str
    content: str
    file: str


class Scenes(TypedDict):
    scenes: list[ListedScene]
    count: int


@described
class Generated(TypedDict):
    success: Literal[True]
    message: str
    audio_base64: str
    """A WAV file, 16-bit mono."""
    sampling_rate: int
    duration: float
    """Seconds."""
    generated_text: str
    seed_ignored: NotRequired[bool]
    """True if a seed was given and the engine does not support seeds; else absent."""


_WHOLE = [Answer("The complete audio.", Generated)]
_REFUSALS = (*SPEECH_REFUSALS, 404)

INFO = Operation("Get information on the model", [Answer("The model and its features.", Info)])
VOICES = Operation("List the voices", [Answer("The voices; `ref_audio` takes their names.", PromptVoices)])
SCENES = Operation("List the scenes", [Answer("The scenes; `scene_prompt` takes their names.", Scenes)])
GENERATE = Operation("Synthesise a text or a dialogue", _WHOLE, GenerateBody, refusals=_REFUSALS)
GENERATE_STREAM = Operation(
    "Synthesise a text or a dialogue as an event stream",
    [
        Answer(
            "`progress` and `audio` events (16-bit PCM in base64) during synthesis, and a final `done` or `error` "
            "event.",
            None,
            ["text/event-stream"],
        )
    ],
    GenerateBody,
    refusals=_REFUSALS,
)
GENERATE_UPLOAD = Operation(
    "Synthesise with an uploaded voice",
    _WHOLE,
    UploadBody,
    "multipart/form-data",
    refusals=SPEECH_REFUSALS,
)
