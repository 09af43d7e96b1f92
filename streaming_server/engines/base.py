"""The protocol of a speech engine, and what the registry has to know of one before it is imported."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar, runtime_checkable

from streaming_server.domain import AudioChunk, Capability, SpeechRequest, Voice
from streaming_server.environment import SettingsGroup


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is really loaded, for ``GET /model_info``."""

    name: str
    model_version: str
    sample_rate_hz: int
    model_type: str = ""
    """Family of the model, as ``get_model_info`` names it; empty where it is the name."""
    device: str = "cpu"
    precision: str = ""
    """``fp16``, ``bf16``, ``fp32`` or ``int8``; empty where the engine has none to choose."""
    use_cuda_kernel: bool = False
    config_path: str = ""
    """Empty where the engine reads no configuration file."""
    model_dir: str = ""
    """Empty where the engine loads no model folder."""
    max_mel_tokens: int | None = None
    """The model's own limit of audio codes a sentence; None where it has none."""
    capabilities: frozenset[Capability] = frozenset()
    """What of a request is honoured. The rest is ignored, and the log says so for each such request; only the speed
    and the turns of a dialogue are then made up for elsewhere."""

    emotion_text_by: Literal["", "classifier", "words"] = ""
    """What reads the description of an emotion: a model, or a list of words. Empty where nothing does."""
    presets: tuple[Voice, ...] = ()
    """Voices of the engine itself, which need no recording."""
    blends: bool = False
    """A request may also name a blend of presets, as in `domain.parse_blend`."""
    max_concurrency: int = 1
    """Requests that `Engine.stream` can serve at the same time."""

    @property
    def is_fp16(self) -> bool:
        return self.precision == "fp16"


class EngineOptions(SettingsGroup):
    """The settings of one engine. A subclass stands in the engine's folder and imports nothing heavy."""


class Engine(Protocol):
    """A source of speech. The slot calls it for at most ``info.max_concurrency`` requests at a time."""

    @property
    def info(self) -> EngineInfo:
        """What is loaded; known before ``warm`` has ended."""

    async def warm(self) -> None:
        """Load and run once, so that the first request is as fast as the next.

        Raises:
            EngineUnavailable: the engine cannot start; the sentence says what to do.
        """

    def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Yield float32 mono chunks at ``info.sample_rate_hz`` as they are made.

        ``aclose()`` stops the synthesis within one chunk and returns when the engine is idle again.

        Raises:
            VoiceUnreadable: the voice's recording cannot be decoded.
        """

    async def aclose(self) -> None:
        """Give back threads, files and device memory."""


@runtime_checkable
class Preparing(Protocol):
    """An engine with work to do before the slot is entered: what needs no device, such as hashing recordings."""

    async def prepare(self, request: SpeechRequest) -> None: ...


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


Options = TypeVar("Options", bound=EngineOptions)


@dataclass(frozen=True, slots=True)
class EngineSpec(Generic[Options]):
    """An entry of the registry; importing it imports nothing that the engine needs."""

    name: str
    """As ``--engine`` names it."""
    title: str
    """For ``--help``."""
    options: type[Options]
    create: Callable[[Options], Engine]
    """Imports the engine and makes it; raises `EngineUnavailable`."""
    recognises: Callable[[Options], bool] = lambda _: False
    """Whether the options name a model of this engine; ``auto`` takes the first engine that says so."""
    problem: Callable[[Options], str] = lambda _: ""
    """Why the model cannot be loaded, as far as that can be told before anything is installed: a sentence with its
    folder and the command that gets it. Empty where nothing is wrong."""
    model_variable: str = ""
    """The variable that names the model. Where it is set, ``auto`` takes no engine without a model."""
    extra: str = ""
    """The extra of this project that installs what it needs; empty where it needs nothing more."""
    companions: tuple[str, ...] = ()
    """Extras that start_api.sh installs with it, though it starts without them."""
    family: str = ""
    """Another value of ``--engine`` that means this engine where it recognises its model."""
