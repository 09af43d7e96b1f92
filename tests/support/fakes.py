"""A scripted engine: audio, delays and failures exactly when a test wants them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from streaming_server.domain import AudioChunk, Capability, FloatSamples, SpeechRequest, Voice
from streaming_server.engines.base import EngineInfo

RATE_HZ = 24000
EMOTIONS_OF_ALL_KINDS = frozenset(name for name in Capability if name.startswith("emotion"))
Step = FloatSamples | float | BaseException | Callable[[], Awaitable[None]]
"""Samples to emit, seconds to sleep, an exception to raise, or something to await."""
FOREVER = 3600.0
"""Seconds that no test waits for: the stream ends only if it is closed."""


class Gate:
    """A step at which the engine waits until the test opens it."""

    def __init__(self) -> None:
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    async def __call__(self) -> None:
        while not self._opened.is_set():
            await asyncio.sleep(0.002)


def tone(seconds: float, frequency_hz: float = 220.0, rate_hz: int = RATE_HZ) -> FloatSamples:
    """A sine at half of full scale, shape ``(seconds * rate,)``."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


@dataclass
class FakeEngine:
    """Follows ``script(request)``; remembers what it was asked and how streams ended."""

    script: Callable[[SpeechRequest], list[Step]] = lambda _: [tone(0.2)]
    warming: list[Step] = field(default_factory=list)
    max_mel_tokens: int | None = 800
    capabilities: frozenset[Capability] = EMOTIONS_OF_ALL_KINDS
    max_concurrency: int = 1
    requests: list[SpeechRequest] = field(default_factory=list)
    running: int = 0
    closed: bool = False

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            "fake",
            "1.0.0",
            RATE_HZ,
            max_mel_tokens=self.max_mel_tokens,
            capabilities=self.capabilities,
            max_concurrency=self.max_concurrency,
        )

    async def warm(self) -> None:
        for step in self.warming:
            await _perform(step)

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        self.requests.append(request)
        self.running += 1
        try:
            for step in self.script(request):
                if isinstance(step, np.ndarray):
                    yield AudioChunk(step)
                else:
                    await _perform(step)
        finally:
            self.running -= 1

    async def aclose(self) -> None:
        self.closed = True


async def _perform(step: Step) -> None:
    if isinstance(step, BaseException):
        raise step
    if isinstance(step, int | float):
        await asyncio.sleep(step)
    elif callable(step):
        await step()


def voice() -> Voice:
    """A voice whose file exists."""
    return Voice("voice_01", Path(__file__).parents[2] / "reference_audios" / "voice_01.wav", 0)
