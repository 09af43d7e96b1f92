"""The effect of emotions on pitch, pitch range, rate and loudness."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.domain import (
    EMOTIONS,
    Capability,
    Emotion,
    EmotionVector,
    FloatSamples,
    Generation,
    SpeechRequest,
    Voice,
)
from streaming_server.engines.espeak.emotion import with_emotion
from streaming_server.engines.espeak.engine import EspeakEngine
from streaming_server.engines.espeak.library import Timbre

TEXT = "The quick brown fox jumps over the lazy dog. Where did you put my yellow coat?"
FOLDER = Path(__file__).parents[2] / "reference_audios"
SHIMMER = Voice("voice_06", FOLDER / "voice_06.wav")
"""Of the eleven the one whose pitch is tracked best."""
ALLOY = Voice("voice_01", FOLDER / "voice_01.wav")


@pytest.fixture(scope="module")
def engine() -> Iterator[EspeakEngine]:
    engine = EspeakEngine()
    yield engine
    asyncio.run(engine.aclose())


def speak(
    engine: EspeakEngine, emotion: Emotion | None, voice: Voice = SHIMMER, seed: int | None = None
) -> FloatSamples:
    async def collect() -> FloatSamples:
        request = SpeechRequest(TEXT, voice, Generation(seed=seed), emotion=emotion)
        async with aclosing(engine.stream(request)) as chunks:
            return np.concatenate([chunk.samples async for chunk in chunks])

    return asyncio.run(collect())


def vector(**shares: float) -> EmotionVector:
    a, b, c, d, e, f, g, h = (shares.get(emotion, 0.0) for emotion in EMOTIONS)
    return a, b, c, d, e, f, g, h


@dataclass(frozen=True)
class Sound:
    pitch_hz: float
    range_semitones: float
    duration_s: float
    level_db: float


def measure(samples: FloatSamples, rate_hz: int = 22050) -> Sound:
    frames = [samples[begin : begin + rate_hz // 10] for begin in range(0, samples.size, rate_hz // 20)]
    pitches = [pitch for frame in frames if (pitch := median_pitch_hz(frame, rate_hz)) is not None]
    low, high = np.percentile(pitches, [15, 85])
    return Sound(
        pitch_hz=float(np.median(pitches)),
        range_semitones=float(12 * np.log2(high / low)),
        duration_s=samples.size / rate_hz,
        level_db=float(10 * np.log10(np.mean(np.square(samples)))),
    )


@pytest.fixture(scope="module")
def plain(engine: EspeakEngine) -> Sound:
    return measure(speak(engine, None))


@pytest.fixture(scope="module")
def sounds(engine: EspeakEngine) -> dict[str, Sound]:
    return {emotion: measure(speak(engine, Emotion(vector=vector(**{emotion: 1.0})))) for emotion in EMOTIONS}


def test_each_as_one_expects(plain: Sound, sounds: dict[str, Sound]) -> None:
    happy, angry, sad, calm = (sounds[emotion] for emotion in ("happy", "angry", "sad", "calm"))
    assert happy.pitch_hz > 1.15 * plain.pitch_hz
    assert happy.range_semitones > 1.2 * plain.range_semitones
    assert happy.duration_s < 0.93 * plain.duration_s
    assert angry.level_db > plain.level_db + 1.5
    assert angry.range_semitones > 1.2 * plain.range_semitones
    assert sad.pitch_hz < 0.88 * plain.pitch_hz
    assert sad.range_semitones < 0.8 * plain.range_semitones
    assert sad.duration_s > 1.1 * plain.duration_s
    assert sad.level_db < plain.level_db - 1
    assert calm.range_semitones < 0.8 * plain.range_semitones
    assert calm.duration_s > 1.05 * plain.duration_s
    assert sounds["afraid"].duration_s < 0.85 * plain.duration_s
    assert sounds["surprised"].pitch_hz > 1.25 * plain.pitch_hz
    assert sounds["melancholic"].duration_s > 1.2 * plain.duration_s


def test_no_two_sound_alike(plain: Sound, sounds: dict[str, Sound]) -> None:
    """Every pair differs audibly in pitch, tempo, loudness or pitch range."""
    for (one, a), (other, b) in combinations([("plain", plain), *sounds.items()], 2):
        differences = (
            abs(12 * np.log2(a.pitch_hz / b.pitch_hz)) / 1.0,
            abs(np.log(a.duration_s / b.duration_s)) / 0.08,
            abs(a.level_db - b.level_db) / 1.5,
            abs(a.range_semitones - b.range_semitones) / 1.0,
        )
        assert max(differences) > 1, (one, other)


def test_weight_scales(engine: EspeakEngine, plain: Sound, sounds: dict[str, Sound]) -> None:
    half = measure(speak(engine, Emotion(vector=vector(happy=1.0), weight=0.5)))
    assert plain.pitch_hz * 1.04 < half.pitch_hz < sounds["happy"].pitch_hz * 0.97
    assert measure(speak(engine, Emotion(vector=vector(happy=1.0), weight=0.0))).pitch_hz == pytest.approx(
        plain.pitch_hz, rel=0.02
    )


def test_description_is_its_vector(engine: EspeakEngine, sounds: dict[str, Sound]) -> None:
    for text in ("请用悲伤的语气", "sadly"):
        described = measure(speak(engine, Emotion(text=text)))
        assert described.pitch_hz == pytest.approx(sounds["sad"].pitch_hz, rel=0.02)
        assert described.duration_s == pytest.approx(sounds["sad"].duration_s, rel=0.01)


def test_heard_in_another_voice(engine: EspeakEngine) -> None:
    happy, sad = (measure(speak(engine, Emotion(vector=vector(**{name: 1.0})), ALLOY)) for name in ("happy", "sad"))
    assert happy.pitch_hz > 1.2 * sad.pitch_hz
    assert happy.duration_s < 0.8 * sad.duration_s


def test_random_is_heard_and_follows_the_seed(engine: EspeakEngine) -> None:
    emotion = Emotion(vector=vector(happy=0.5), random=True)
    steady = measure(speak(engine, replace(emotion, random=False)))
    for seed in range(4):
        one, again = (measure(speak(engine, emotion, seed=seed)) for _ in range(2))
        assert one.pitch_hz == pytest.approx(again.pitch_hz, rel=0.02)
        assert one.duration_s == pytest.approx(again.duration_s, rel=0.01)
        assert abs(one.duration_s / steady.duration_s - 1) > 0.04
    drawn = {round(measure(speak(engine, emotion)).duration_s, 1) for _ in range(6)}
    assert len(drawn) > 1


def test_bounds_are_espeaks() -> None:
    everything: EmotionVector = (1.0,) * 8
    for vectors in (everything, vector(sad=1.0, melancholic=1.0, disgusted=1.0), vector(surprised=1.0, afraid=1.0)):
        for timbre in (Timbre(), Timbre(pitch=0, pitch_range=0, rate_wpm=80, volume=0), Timbre("", 99, 99, 450, 200)):
            felt = with_emotion(timbre, vectors, 1.0)
            assert 0 <= felt.pitch <= 99
            assert 0 <= felt.pitch_range <= 99
            assert 80 <= felt.rate_wpm <= 450
            assert 0 <= felt.volume <= 200


def test_what_is_ignored_is_logged_once(engine: EspeakEngine, caplog: pytest.LogCaptureFixture) -> None:
    capabilities = engine.info.capabilities
    assert Capability.EMOTION_VECTOR in capabilities
    assert Capability.EMOTION_TEXT in capabilities
    assert Capability.EMOTION_REFERENCE not in capabilities
    assert Capability.SPEED not in capabilities
    with caplog.at_level(logging.INFO, "streaming_server"):
        reference = speak(engine, Emotion(reference=ALLOY))
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "voice_01" in caplog.text
        caplog.clear()
        speak(engine, Emotion(text="like a newsreader"))
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "newsreader" not in caplog.text, "a text of the user in the log"
        caplog.clear()
        speak(engine, Emotion(text="happy"))
        assert not caplog.records
    assert measure(reference).pitch_hz == pytest.approx(measure(speak(engine, None)).pitch_hz, rel=0.02)


def test_other_generation_parameters_are_named(engine: EspeakEngine, caplog: pytest.LogCaptureFixture) -> None:
    async def first() -> None:
        request = SpeechRequest("a", SHIMMER, Generation(top_k=5))
        async with aclosing(engine.stream(request)) as chunks:
            await anext(chunks)

    with caplog.at_level(logging.INFO, "streaming_server"):
        asyncio.run(first())
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert Capability.GENERATION_PARAMETERS not in engine.info.capabilities
