"""What the server asks of a speech engine, and the engines there are, by name.

An engine is imported only when it is chosen, so that nobody pays for a model that is not used.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from streaming_server.domain import AudioChunk, SpeechRequest


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is really loaded, for ``GET /model_info``."""

    name: str
    model_version: str
    sample_rate_hz: int
    device: str = "cpu"
    is_fp16: bool = False
    use_cuda_kernel: bool = False
    config_path: str = ""
    """Empty where the engine reads no configuration file."""
    model_dir: str = ""
    """Empty where the engine loads no model folder."""
    max_mel_tokens: int | None = None
    """The model's own limit of audio codes a sentence; None where it has none."""
    capabilities: Mapping[str, bool] = field(default_factory=dict)
    """What of a request is honoured: ``voice_cloning``, ``multi_language``, ``generation_parameters``, ``seed``,
    ``speed``, ``emotion_control`` (any emotion at all), ``emotion_vector``, ``emotion_text``, ``emotion_reference``,
    ``emotion_random``. What is missing or False is ignored, and the engine's log says so for each such request; the
    speed alone is then made up for elsewhere."""


class Engine(Protocol):
    """A source of speech. Called by one request at a time; the slot sees to that."""

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


def create_engine() -> Engine:
    """The engine to speak with.

    Raises:
        EngineUnavailable: it cannot start.
    """
    from streaming_server.engines.espeak.engine import EspeakEngine

    return EspeakEngine()
