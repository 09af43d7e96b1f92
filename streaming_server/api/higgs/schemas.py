"""The bodies, answers and operations of the HiggsAudio dialect, from which ``/openapi.json`` is generated."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from streaming_server.api.http import Body
from streaming_server.api.operations import SPEECH_REFUSALS, Answer, Operation, Tag, described
from streaming_server.api.requests import Name, Names, PositiveInt, Seed, Share, Text
from streaming_server.domain import Capability

TAG = Tag("HiggsAudio", "What HiggsAudio clients speak: dialogues, scenes, whole files as JSON, streams as events.")

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
"""By capability, in the order of the list; the first, second and last are the server's own, on any engine."""
OWN_FEATURES = frozenset({"single", Capability.DIALOGUE, "stream"})


class SamplingBody(Body):
    text: Annotated[Text, Field(examples=["[SPEAKER0] 你好。 [SPEAKER1] Hello!"])]
    """Plain, or a dialogue with `[SPEAKER0]`, `[SPEAKER1]` … before each speaker's words. Not blank."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_k: Annotated[int, Field(ge=1, le=100)] | None = 50
    """Null: no limit."""
    top_p: Share = 0.95
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 2048
    """Most audio codes of one piece of the text."""
    seed: Seed | None = None
    """The same seed, request and engine give the same audio."""


class GenerateBody(SamplingBody):
    ref_audio: Annotated[Names | None, Field(examples=["belinda,voice_01"])] = None
    """A name of `GET /voices`; for a dialogue several, separated by commas: the first for `[SPEAKER0]`."""
    scene_prompt: Name | None = DEFAULT_SCENE
    """A name of `GET /scenes`; null for none."""
    ras_win_len: Annotated[int, Field(ge=-4096, le=4096)] = 7
    """Repetition-aware sampling: how many codes are looked back at; 0 or less leaves it out."""
    ras_win_max_num_repeat: Annotated[int, Field(ge=1, le=4096)] = 2
    """How often a code may occur among those before it is drawn again."""
    chunk_method: Literal["speaker", "word"] | None = None
    """How the text is cut into pieces; null leaves it whole."""
    chunk_max_word_num: PositiveInt = 200
    """Most words of a piece, with `word`; a Han character counts as one."""
    chunk_max_num_turns: PositiveInt = 1
    """Most turns of a piece, with `speaker`."""
    generation_chunk_buffer_size: Annotated[int, Field(ge=0, le=4096)] | None = None
    """How many earlier pieces stay as context; null for all."""


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
    """What the loaded engine has."""


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
    """True where a seed was given and the engine cannot repeat its audio; else absent."""


_WHOLE = [Answer("The audio, once it is complete.", Generated)]
_REFUSALS = (*SPEECH_REFUSALS, 404)

INFO = Operation("What runs", [Answer("The model and what it can.", Info)])
VOICES = Operation("The voices", [Answer("By name, as `ref_audio` takes them.", PromptVoices)])
SCENES = Operation("The scenes", [Answer("By name, as `scene_prompt` takes them.", Scenes)])
GENERATE = Operation("Speak a text or a dialogue", _WHOLE, GenerateBody, refusals=_REFUSALS)
GENERATE_STREAM = Operation(
    "Speak a text or a dialogue, as events",
    [
        Answer(
            "`progress` and `audio` events as the audio is made (16-bit PCM in base64), and a last one that is `done` "
            "or `error`.",
            None,
            ["text/event-stream"],
        )
    ],
    GenerateBody,
    refusals=_REFUSALS,
)
GENERATE_UPLOAD = Operation(
    "Speak in the voice of an uploaded recording", _WHOLE, UploadBody, "multipart/form-data", refusals=SPEECH_REFUSALS
)
