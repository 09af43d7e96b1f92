from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streaming_server.domain import FloatSamples, Generation, SpeechRequest, Voice
from streaming_server.engines.espeak.engine import EspeakEngine
from streaming_server.engines.hibari.engine import HibariEngine
from streaming_server.engines.hibari.network import Network
from streaming_server.engines.onnx.english import EnglishPhonemes

RECORDINGS = sorted((Path(__file__).parents[3] / "reference_audios").glob("*.wav"))
CORAL = RECORDINGS[8]

Say = Callable[..., Awaitable[FloatSamples]]


@pytest.fixture(scope="session")
def network() -> Network:
    return Network()


@pytest.fixture(scope="session")
def english() -> EnglishPhonemes:
    return EnglishPhonemes()


@pytest.fixture
async def engine(english: EnglishPhonemes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HibariEngine]:
    """Takes the lexicon that is loaded once."""
    monkeypatch.setattr("streaming_server.engines.hibari.engine.EnglishPhonemes", lambda: english)
    engine = HibariEngine(EspeakEngine())
    await engine.warm()
    yield engine
    await engine.aclose()


@pytest.fixture
def say(engine: HibariEngine) -> Say:
    async def say(text: str, recording: Path = CORAL, seed: int | None = 1, **options: Any) -> FloatSamples:
        voice = Voice(recording.stem, recording)
        request = SpeechRequest(text, voice, generation=Generation(seed=seed), **options)
        async with aclosing(engine.stream(request)) as chunks:
            return np.concatenate([chunk.samples async for chunk in chunks])

    return say
