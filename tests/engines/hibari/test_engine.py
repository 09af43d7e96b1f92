from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streaming_server.audio.decode import decode_native
from streaming_server.audio.encoders import wav_header
from streaming_server.audio.pcm import to_int16
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.domain import (
    EMOTIONS,
    Capability,
    Emotion,
    EmotionVector,
    FloatSamples,
    Generation,
    Pronunciation,
    SpeechRequest,
    Voice,
)
from streaming_server.engines.hibari.engine import HibariEngine
from streaming_server.engines.hibari.joins import active_rms
from streaming_server.engines.hibari.network import Frames, Network
from streaming_server.engines.hibari.voices import PRESETS, Preset
from streaming_server.errors import InvalidRequest, VoiceFileMissing, VoiceUnreadable
from tests.engines.hibari.conftest import CORAL, RECORDINGS, Say
from tests.support.asr import word_error_rate

pytestmark = pytest.mark.anyio
RATE_HZ = 24000
ENGLISH = "The birch canoe slid on the smooth planks. It costs $12, due on the 5th of May."
PARAGRAPH = (
    "Mrs. Taylor lives at 42 Baker Street in London. Please read the manual before you turn on the machine. "
    "The train leaves at half past seven in the evening."
)


def request(text: str, recording: Path = CORAL) -> SpeechRequest:
    return SpeechRequest(text, Voice(recording.stem, recording))


@pytest.mark.parametrize(
    ("text", "has_pause"),
    [
        ("Chapter One\nIt was a dark night", True),
        ("Chapter One\n夜", True),
        ("We met at five p.m. She left", True),
        ("one two\nthree four", False),
        ("один Python\nи два", False),
    ],
)
async def test_a_line_that_is_not_wrapped_and_an_abbreviation_end_with_a_pause(
    say: Say, text: str, has_pause: bool
) -> None:
    samples = await say(text)
    loud = np.flatnonzero(np.abs(samples) > 0.005)
    assert (np.diff(loud).max() > 0.3 * RATE_HZ) == has_pause


@pytest.mark.parametrize(
    "text",
    [
        "On 2024-05-06 we met the new director of the museum in town.",
        "Call 555-1234 and ask for the new director of the museum.",
    ],
)
async def test_a_number_in_several_clauses_begins_once(engine: HibariEngine, text: str) -> None:
    async with aclosing(engine.stream(request(text))) as chunks:
        marks = [mark async for chunk in chunks for mark in chunk.marks]
    times_s = [mark.time_s for mark in marks]
    assert times_s == sorted(times_s)
    begin = text.index(" ") + 1
    assert [mark.time_s < 0.5 for mark in marks if mark.character == begin] == [True]


def vector(emotion: str) -> EmotionVector:
    a, b, c, d, e, f, g, h = (float(name == emotion) for name in EMOTIONS)
    return a, b, c, d, e, f, g, h


def level_db(samples: FloatSamples) -> float:
    return float(20 * np.log10(active_rms(samples)))


def brightness(samples: FloatSamples) -> float:
    power = np.abs(np.fft.rfft(samples)) ** 2
    frequencies = np.fft.rfftfreq(samples.size, 1 / RATE_HZ)
    return float(10 * np.log10(power[frequencies > 1500].sum() / power[frequencies < 1000].sum()))


@pytest.mark.parametrize("recording", [RECORDINGS[0], RECORDINGS[3], RECORDINGS[4], CORAL], ids=lambda path: path.stem)
async def test_a_recogniser_understands_the_voice(say: Say, recording: Path) -> None:
    assert word_error_rate([(await say(PARAGRAPH, recording), PARAGRAPH)], RATE_HZ) <= 0.12


async def test_the_recogniser_refuses_what_was_not_said(say: Say) -> None:
    samples = await say(PARAGRAPH)
    assert word_error_rate([(samples[::-1].copy(), PARAGRAPH)], RATE_HZ) > 0.7
    assert word_error_rate([(samples, "Nobody came to see the old man's garden while it was raining.")], RATE_HZ) > 0.7


async def test_the_same_seed_gives_the_same_samples(say: Say) -> None:
    first = await say(ENGLISH, seed=7)
    assert np.array_equal(first, await say(ENGLISH, seed=7))
    assert not np.array_equal(first, await say(ENGLISH, seed=8))
    assert not np.array_equal(await say(ENGLISH, seed=None), await say(ENGLISH, seed=None))
    assert np.array_equal(await say("Yes.", seed=-(2**63)), await say("Yes.", seed=-(2**63)))


@pytest.mark.parametrize(
    ("recording", "preset"), list(zip(RECORDINGS, PRESETS, strict=True)), ids=lambda item: item.name
)
def test_each_recording_is_3_to_6_seconds_of_its_preset(recording: Path, preset: Preset) -> None:
    samples, rate_hz = decode_native(recording)
    assert 3 <= samples.size / rate_hz <= 6
    assert median_pitch_hz(samples, rate_hz) == pytest.approx(preset.median_pitch_hz, abs=2)


async def test_a_preset_is_a_voice_by_its_name_its_recording_or_a_copy_of_it(
    engine: HibariEngine, say: Say, tmp_path: Path
) -> None:
    for recording, preset, voice in zip(RECORDINGS[:5], PRESETS, engine.info.presets, strict=False):
        spoken = await say("It costs $12.", recording)
        chunks = engine.stream(SpeechRequest("It costs $12.", voice, generation=Generation(seed=1)))
        assert np.array_equal(spoken, np.concatenate([chunk.samples async for chunk in chunks]))
        copy = tmp_path / "renamed.wav"
        copy.write_bytes(recording.read_bytes())
        assert median_pitch_hz(await say(ENGLISH, copy), RATE_HZ) == pytest.approx(preset.median_pitch_hz, rel=0.12)


@pytest.mark.parametrize("hertz", [90, 140, 185, 250])
async def test_any_other_recording_gets_its_pitch(say: Say, tmp_path: Path, hertz: int) -> None:
    time_s = np.arange(2 * RATE_HZ) / RATE_HZ
    buzz = to_int16(
        (0.1 * np.sin(2 * np.pi * hertz * np.outer(np.arange(1, 6), time_s)).sum(axis=0)).astype(np.float32)
    )
    path = tmp_path / "foreign.wav"
    path.write_bytes(wav_header(RATE_HZ, buzz.size) + buzz.tobytes())
    assert median_pitch_hz(await say(ENGLISH, path), RATE_HZ) == pytest.approx(hertz, rel=0.12)


async def test_recordings_that_cannot_be_used_are_named(say: Say, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"RIFF, but not really")
    with pytest.raises(VoiceUnreadable, match=r"bad\.wav"):
        await say("a", tmp_path / "bad.wav")
    with pytest.raises(VoiceFileMissing, match=r"gone\.wav"):
        await say("a", tmp_path / "gone.wav")
    assert (await say("still works")).size


async def test_another_script_is_spoken_at_the_same_level_without_a_click(say: Say) -> None:
    mixed = await say("Welcome to the big city of 北京，我们很高兴见到你们。 We hope that you enjoy it.")
    english = (await say("Welcome to the big city of")).size
    assert mixed.size > english + (await say("We hope that you enjoy it.")).size + 2 * RATE_HZ
    size = RATE_HZ // 2
    loud = [level_db(mixed[start : start + size]) for start in range(0, mixed.size - size, size)]
    assert np.percentile(loud, 90) - np.percentile(loud, 10) < 9, loud
    assert np.abs(np.diff(mixed)).max() < 0.45
    assert median_pitch_hz(await say("我们很高兴见到你们。"), RATE_HZ) == pytest.approx(205, rel=0.25)


async def test_without_espeak_another_script_is_refused_by_name() -> None:
    engine = HibariEngine()
    await engine.warm()
    assert Capability.MULTI_LANGUAGE not in engine.info.capabilities
    with pytest.raises(InvalidRequest, match="espeak-ng is installed") as refused:
        await anext(engine.stream(request("Hello, 世界!")))
    assert refused.value.field == "text"
    for text in ("வணக்கம்", "བོད་ཡིག"):  # of one language, and of none that is known
        with pytest.raises(InvalidRequest, match=text):
            await anext(engine.stream(request(text)))
    assert (await anext(engine.stream(request("Hello, world: 42!")))).samples.size
    await engine.aclose()


@pytest.mark.parametrize("text", ["😀😀", "…", "***", "-"])
async def test_what_cannot_be_spoken_is_a_short_silence(say: Say, text: str) -> None:
    samples = await say(text)
    assert 0 < samples.size < RATE_HZ
    assert not samples.any()


async def test_garbage_is_spoken_or_left_out(say: Say) -> None:
    generator = np.random.default_rng(0)
    for alphabet in (range(32, 127), range(160, 0x2FF), [*range(48, 58), 32, 44, 46, 58, 47, 36]):
        samples = await say("".join(map(chr, generator.choice(list(alphabet), 300))))
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() < 1


async def test_emotions_are_heard_in_pitch_rate_energy_and_tilt(say: Say) -> None:
    neutral = await say(ENGLISH)
    angry = await say(ENGLISH, emotion=Emotion(vector=vector("angry")))
    sad = await say(ENGLISH, emotion=Emotion(text="sad"))
    happy = await say(ENGLISH, emotion=Emotion(vector=vector("happy")))
    weak = await say(ENGLISH, emotion=Emotion(vector=vector("sad"), weight=0.3))
    assert level_db(angry) > level_db(neutral) + 1 > level_db(sad) + 2
    assert brightness(angry) > brightness(neutral) + 1 > brightness(sad) + 2
    assert angry.size < neutral.size < weak.size < sad.size
    pitches = [median_pitch_hz(samples, RATE_HZ) or 0 for samples in (sad, neutral, happy)]
    assert pitches == sorted(pitches)
    assert pitches[2] > 1.15 * pitches[0]
    assert not np.array_equal(neutral, await say(ENGLISH, emotion=Emotion(vector=vector("calm"), random=True)))


class _SlowNetwork(Network):
    """Reports each call, and waits in it until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.allowed = threading.Semaphore(0)

    def run(self, phonemes: str) -> Frames:
        self.calls.append(phonemes)
        self.allowed.acquire()
        return super().run(phonemes)


@pytest.fixture
async def slow(engine: HibariEngine) -> AsyncIterator[_SlowNetwork]:
    network = _SlowNetwork()
    engine._network = network
    yield network
    network.allowed.release(100)


async def test_audio_comes_before_the_second_clause_is_known(engine: HibariEngine, slow: _SlowNetwork) -> None:
    text = "First of all, we have a very long sentence with many words, which goes on. " + ENGLISH
    slow.allowed.release()
    async with aclosing(engine.stream(request(text))) as chunks:
        assert (await anext(chunks)).samples.size < RATE_HZ / 4
        assert len(slow.calls) <= 2
        assert len(slow.calls[0]) < 20
        slow.allowed.release(100)
        total = sum([chunk.samples.size async for chunk in chunks])
    assert len(slow.calls) == 4
    assert total > 6 * RATE_HZ


async def test_cancelling_runs_no_further_clause(engine: HibariEngine, slow: _SlowNetwork) -> None:
    chunks = engine.stream(request(ENGLISH * 20))
    slow.allowed.release()
    await anext(chunks)
    closing = asyncio.create_task(chunks.aclose())
    await asyncio.sleep(0)
    slow.allowed.release(1000)
    await closing
    calls = len(slow.calls)
    assert calls <= 3
    async with aclosing(engine.stream(request("And on."))) as again:
        assert sum([chunk.samples.size async for chunk in again]) > RATE_HZ / 4
    assert len(slow.calls) == calls + 1


async def test_marks_are_where_the_words_begin_and_phonemes_are_said(engine: HibariEngine) -> None:
    text = "Nobody came; x is here. Да."
    asked = request(text, RECORDINGS[0])
    asked = replace(asked, pronunciations=(Pronunciation(13, 14, "kæt"),), generation=Generation(seed=1))
    chunks = [chunk async for chunk in engine.stream(asked)]
    samples = np.concatenate([chunk.samples for chunk in chunks])
    marks = {mark.character: mark.time_s for chunk in chunks for mark in chunk.marks}
    assert {0, 7, 13, 15, 18, 24} <= marks.keys()
    assert [*marks.values()] == sorted(marks.values())
    loud = np.flatnonzero(np.abs(samples) > 0.02) / RATE_HZ
    for character in (13, 24):  # behind pauses
        assert loud[np.searchsorted(loud, marks[character] - 0.05)] == pytest.approx(marks[character], abs=0.1)
    plain = replace(request(text.replace(" x ", " cat "), RECORDINGS[0]), generation=Generation(seed=1))
    cat = np.concatenate([chunk.samples async for chunk in engine.stream(plain)])
    assert np.array_equal(samples, cat)


async def test_a_word_of_espeak_ends_before_the_pause_behind_it(engine: HibariEngine) -> None:
    async with aclosing(engine.stream(request("Привет. Hello"))) as chunks:
        marks = {mark.character: mark.time_s async for chunk in chunks for mark in chunk.marks}
    assert marks[8] - marks[7] > 0.37


async def test_a_language_is_left_to_espeak(say: Say) -> None:
    assert not np.array_equal(await say("Guten Tag.", language="de"), await say("Guten Tag."))
    assert np.array_equal(await say("Good day.", language="en-GB"), await say("Good day."))


SEVERAL = [ENGLISH, "Hello there. 你好，今天天气很好。 And goodbye.", PARAGRAPH, "Да, конечно. Yes."]


async def whole(engine: HibariEngine, text: str) -> FloatSamples:
    asked = replace(request(text), generation=Generation(seed=1))
    async with aclosing(engine.stream(asked)) as chunks:
        return np.concatenate([chunk.samples async for chunk in chunks])


async def test_each_of_several_at_once_is_what_it_is_alone_whoever_leaves(engine: HibariEngine) -> None:
    engine.reserve(len(SEVERAL) + 2)
    alone = [await whole(engine, text) for text in SEVERAL]
    together = [asyncio.create_task(whole(engine, text)) for text in SEVERAL]
    for text in (PARAGRAPH, "Привет, как дела?"):
        async with aclosing(engine.stream(request(text))) as leaving:
            await anext(leaving)
    for samples, expected in zip(await asyncio.gather(*together), alone, strict=True):
        assert np.array_equal(samples, expected)


@pytest.mark.parametrize("text", [ENGLISH * 100, "你好，今天天气很好。" * 1000])
async def test_a_reader_that_stops_holds_up_nobody(engine: HibariEngine, text: str) -> None:
    engine.reserve(2)
    async with aclosing(engine.stream(request(text))) as stopped, asyncio.timeout(180):
        await anext(stopped)
        for other in SEVERAL:
            assert (await whole(engine, other)).size > RATE_HZ
        assert (await anext(stopped)).samples.size


async def test_there_is_room_while_all_listeners_can_be_kept_up_with(engine: HibariEngine) -> None:
    for load in (engine._network_load, engine._rendering_load):
        load.add(1e6, 1e7)  # a tenth of the time
        assert engine.has_room(7)
    engine._rendering_load.add(1e9, 3e9)
    assert engine.has_room(1)
    assert not engine.has_room(2)
