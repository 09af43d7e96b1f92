"""The protocol of a speech engine, and its entry in the registry."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import Field

from streaming_server.domain import AudioChunk, Capability, SpeechRequest, Voice, matching_language
from streaming_server.environment import SettingsGroup


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The loaded model, for ``GET /model_info``."""

    name: str
    model_version: str
    sample_rate_hz: int
    model_type: str = ""
    """Family of the model in ``get_model_info``; empty if it equals ``name``."""
    device: str = "cpu"
    precision: str = ""
    """``fp16``, ``bf16``, ``fp32`` or ``int8``; empty if the engine has no choice."""
    use_cuda_kernel: bool = False
    config_path: str = ""
    """Empty if the engine reads no configuration file."""
    model_dir: str = ""
    """Empty if the engine loads no model folder."""
    max_mel_tokens: int | None = None
    """Maximum number of audio codes per sentence; None if the model has no limit."""
    capabilities: frozenset[Capability] = frozenset()
    """The supported features. Options without support are ignored and logged, except that the server itself applies the
    speed and splits dialogues into turns."""

    emotion_text_by: Literal["", "classifier", "words"] = ""
    """What interprets the description of an emotion: a model or a word list; empty if nothing does."""
    presets: tuple[Voice, ...] = ()
    """Voices of the engine, which require no recording."""
    blends: bool = False
    """Whether requests may name a blend of presets, as in `domain.parse_blend`."""
    languages: tuple[str, ...] = ()
    """BCP 47 tags of the languages that a request can choose, in lower case; empty: the text alone decides."""
    max_concurrency: int | None = 1
    """Maximum number of concurrent calls of `Engine.stream`; None if there is no limit."""

    def reads(self, language: str) -> bool:
        """Whether a request can choose a language, given as a BCP 47 tag."""
        return matching_language(language, self.languages) is not None

    @property
    def is_fp16(self) -> bool:
        return self.precision == "fp16"


class EngineOptions(SettingsGroup):
    """The settings of one engine. The module of a subclass must not import the model's libraries."""


class CpuOptions(EngineOptions):
    """Options of engines that run on the CPU with one precision: explicit values of other engines are errors."""

    device: Annotated[Literal["auto", "cpu"], Field(validation_alias="DEVICE")] = "auto"
    precision: Annotated[Literal["auto"], Field(validation_alias="PRECISION")] = "auto"


class Engine(Protocol):
    """A speech engine. At most ``info.max_concurrency`` requests are synthesised concurrently."""

    @property
    def info(self) -> EngineInfo:
        """The loaded model; available before ``warm`` has ended."""

    async def warm(self) -> None:
        """Load the model and run it once, so that the first request is not slower.

        Raises:
            EngineUnavailable: the engine cannot start.
        """

    def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Yield float32 mono chunks at ``info.sample_rate_hz`` as they are generated.

        ``aclose()`` stops the synthesis within one chunk and returns when the engine is idle.

        Raises:
            VoiceUnreadable: the voice's recording cannot be decoded.
        """

    async def aclose(self) -> None:
        """Release threads, files and device memory."""


@runtime_checkable
class Preparing(Protocol):
    """An engine with work that needs no device and runs before the slot is entered, such as hashing recordings."""

    async def prepare(self, request: SpeechRequest) -> None: ...


@runtime_checkable
class Selective(Protocol):
    """An engine that cannot synthesise every text."""

    def refusal(self, request: SpeechRequest) -> str:
        """Why ``stream`` rejects the text of a request, as a phrase that follows the name of its field; empty if not.

        Runs on the event loop, before the request is accepted.
        """


@runtime_checkable
class Calibrating(Protocol):
    """An engine whose settings trade accuracy for latency."""

    async def calibrate(self, recording: Path, text: str, report: Callable[[str], None]) -> str:
        """Measure what the settings cost in a voice, and return which to choose.

        Args:
            recording: The recording of the voice.
            text: The text; its first segment is synthesised.
            report: Called with each line of a table, on another thread.

        Raises:
            EngineNotReady: ``warm`` has not completed.
            InvalidRequest: the text is too short.
            VoiceUnreadable: the recording cannot be decoded.
        """


@runtime_checkable
class Batching(Protocol):
    """An engine that serves several requests at the same time."""

    def reserve(self, requests: int) -> None:
        """The most requests at a time, at most ``info.max_concurrency``; called before ``warm``."""

    def has_room(self, active: int) -> bool:
        """Whether one more request than ``active`` can be served without gaps in any; may be called at any time."""


Options = TypeVar("Options", bound=EngineOptions)


@dataclass(frozen=True, slots=True)
class EngineSpec(Generic[Options]):
    """An entry of the registry. Importing it does not import the model's libraries."""

    name: str
    """The name for ``--engine``."""
    title: str
    """The description for ``--help``."""
    options: type[Options]
    create: Callable[[Options], Engine]
    """Imports and creates the engine; raises `EngineUnavailable`."""
    recognises: Callable[[Options], bool] = lambda _: False
    """Whether the options refer to a model of this engine; ``auto`` selects the first such engine."""
    problem: Callable[[Options], str] = lambda _: ""
    """Why the model cannot be loaded, checked before packages are installed: a sentence with the folder and the command
    that downloads the model. Empty if there is no problem."""
    model_variable: str = ""
    """The variable of the model. If it is set, ``auto`` selects no engine without a model."""
    extra: str = ""
    """The extra of this project that installs its packages; empty if it requires none."""
    companions: tuple[str, ...] = ()
    """Optional extras that start_api.sh installs too."""
    family: str = ""
    """Another value of ``--engine`` that selects this engine if it recognises its model."""
