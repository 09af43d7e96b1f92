"""Tempo changes keep the pitch and the intelligibility."""

from __future__ import annotations

from functools import cache
from itertools import cycle

import numpy as np
import psutil
import pytest

from streaming_server.audio.encoders import FORMATS, WavEncoder
from streaming_server.audio.pcm import to_float32
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.audio.stretch import TimeStretch, stretched
from streaming_server.domain import IntSamples
from streaming_server.engines.espeak.library import Timbre
from tests.support.decoders import ffmpeg_decode
from tests.support.digits import STRINGS, agreement, recognise_digits, say, say_digits

SPEEDS = (0.25, 0.3, 0.5, 0.8, 0.99, 1.25, 2.0, 3.0, 4.0)


@cache
def speech(variant: str = "") -> tuple[IntSamples, int]:
    return say("The quick brown fox jumps over the lazy dog. One two three four five.", Timbre(variant))


def stretch(samples: IntSamples, rate_hz: int, speed: float, sizes: tuple[int, ...] = (441,)) -> IntSamples:
    stretcher = TimeStretch(rate_hz, speed)
    parts = []
    begin = 0
    for size in cycle(sizes):
        if begin >= samples.size:
            break
        parts.append(stretcher.push(samples[begin : begin + size]))
        begin += size
    return np.concatenate([*parts, stretcher.finish()])


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("duration_s", [0.3, 1.0, 4.0])
def test_duration(speed: float, duration_s: float) -> None:
    samples, rate_hz = speech()
    samples = samples[2000 : 2000 + round(duration_s * rate_hz)]
    assert abs(stretch(samples, rate_hz, speed).size - samples.size / speed) <= 1


@pytest.mark.parametrize("speed", SPEEDS)
def test_sounds_stay_where_they_belong(speed: float) -> None:
    """A beep in the middle keeps its relative position and length."""
    rate_hz = 24000
    samples = np.zeros(2 * rate_hz, np.int16)
    beep = np.arange(rate_hz // 2)
    samples[rate_hz : rate_hz + beep.size] = 8000 * np.sin(2 * np.pi * 200 * beep / rate_hz)
    loud = np.flatnonzero(np.abs(stretch(samples, rate_hz, speed)) > 2000)
    assert loud[0] * speed / rate_hz == pytest.approx(1.0, abs=0.06)
    assert loud[-1] * speed / rate_hz == pytest.approx(1.5, abs=0.06)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("variant", ["", "f2"])
def test_pitch_is_kept(variant: str, speed: float) -> None:
    samples, rate_hz = speech(variant)
    before = median_pitch_hz(to_float32(samples), rate_hz)
    after = median_pitch_hz(to_float32(stretch(samples, rate_hz, speed)), rate_hz)
    assert after == pytest.approx(before, rel=0.03)


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.0, 1.25, 4.0, 8.0])
@pytest.mark.parametrize("sizes", [(1, 7, 100), (997,), (0, 5000), (1 << 20,)])
def test_any_split_is_the_same(sizes: tuple[int, ...], speed: float) -> None:
    samples, rate_hz = speech()
    np.testing.assert_array_equal(
        stretch(samples[:rate_hz], rate_hz, speed, sizes), stretch(samples[:rate_hz], rate_hz, speed)
    )


@pytest.mark.parametrize("rate_hz", [22050, 24000, 48000])
@pytest.mark.parametrize(("speed", "most_ms"), [(0.25, 100), (0.5, 70), (0.8, 90), (1.25, 70), (2.0, 100), (4.0, 140)])
def test_first_output_is_early(speed: float, most_ms: float, rate_hz: int) -> None:
    samples = np.resize(speech()[0], rate_hz)
    stretcher = TimeStretch(rate_hz, speed)
    step = rate_hz // 100
    fed = next(end for end in range(step, rate_hz, step) if stretcher.push(samples[end - step : end]).size)
    assert fed * 1000 / rate_hz <= most_ms


def test_at_one_nothing_is_done() -> None:
    samples, rate_hz = speech()
    assert TimeStretch(rate_hz, 1.0).push(samples) is samples
    encoder = WavEncoder()
    assert stretched(encoder, 1.0) is encoder


@pytest.mark.parametrize("speed", [0.25, 1.0, 4.0])
def test_nothing_stays_nothing(speed: float) -> None:
    stretcher = TimeStretch(22050, speed)
    assert stretcher.push(np.empty(0, np.int16)).size == 0
    assert stretcher.finish().size == 0


@pytest.mark.parametrize("speed", [0.0, 0.249, 4.01, -1.0, float("nan"), float("inf")])
def test_refuses_other_speeds(speed: float) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.25-4\.0"):
        stretched(WavEncoder(), speed)


@pytest.mark.parametrize("speed", [0.0, 0.1249, 8.01, -1.0, float("nan"), float("inf")])
def test_refuses_what_no_change_of_speed_and_pitch_needs(speed: float) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.125-8\.0"):
        TimeStretch(22050, speed)


def test_no_thread_a_stream() -> None:
    before = psutil.Process().num_threads()
    stretchers = [TimeStretch(22050, 2.0) for _ in range(10)]
    assert psutil.Process().num_threads() - before < len(stretchers)  # other tests' servers may begin a few


@pytest.mark.parametrize("speed", [0.5, 2.0])
@pytest.mark.parametrize("name", ["ogg", "mp3", "flac", "wav"])
def test_encoded(name: str, speed: float) -> None:
    samples, rate_hz = speech()
    encoder = stretched(FORMATS[name].create(), speed)
    assert encoder.media_type == FORMATS[name].media_type
    encoded = encoder.start(rate_hz)
    for begin in range(0, samples.size, 441):
        encoded += encoder.push(samples[begin : begin + 441])
    encoded += encoder.flush() + encoder.finish()
    assert ffmpeg_decode(encoded, rate_hz).size == pytest.approx(samples.size / speed, rel=0.05)


# The recogniser is not trained on such rates, so the input is spoken at the inverse rate.
@pytest.mark.parametrize(("speed", "rate_wpm"), [(0.5, 220), (2.0, 120)])
def test_is_still_understood(speed: float, rate_wpm: int) -> None:
    right, wrong, backwards = [], [], []
    for digits, others in zip(STRINGS, (*STRINGS[1:], STRINGS[0]), strict=True):
        samples, rate_hz = say_digits(digits, Timbre(rate_wpm=rate_wpm))
        faster = to_float32(stretch(samples, rate_hz, speed))
        heard = recognise_digits(faster, rate_hz, len(digits))
        right.append(agreement(heard, digits))
        wrong.append(agreement(heard, others))
        backwards.append(agreement(recognise_digits(faster[::-1], rate_hz, len(digits)), digits))
    assert np.mean(right) >= 0.8
    assert np.mean(wrong) <= 0.2
    assert np.mean(backwards) <= 0.2
