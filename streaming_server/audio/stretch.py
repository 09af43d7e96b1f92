"""Changes the tempo of a stream of speech and keeps its pitch."""

from __future__ import annotations

import math

import numpy as np

from streaming_server.audio.encoders import AudioEncoder
from streaming_server.audio.filters import FilterChain
from streaming_server.domain import IntSamples

SPEED_MIN, SPEED_MAX = 0.25, 4.0
_STRETCH_MIN, _STRETCH_MAX = 0.125, 8.0
"""An octave wider than the range of speeds: a change of pitch, up to an octave, is stretched back to its length."""
_STAGE_MIN, _STAGE_MAX = 0.5, 4.0
"""The tempos of one filter; beyond them filters are chained. libavfilter aborts the process at 8.0."""
_TAIL_S = 0.2
_MIN_SAMPLES = 8
"""The filter fails for pieces so short that no sample is left at tempo 4.0."""


class TimeStretch:
    """A streaming change of tempo: WSOLA, as libavfilter's ``atempo`` has it; the same output for any split.

    The filter is used and not one of our own as it is exact in pitch, takes a thousandth of real time and is kept by
    others. What it lacks is made good here: it drops the end of what it is given, a tenth of a second of 0.3, so that
    silence is pushed after the end and the output is cut to ``round(n / speed)`` samples for ``n`` of input.

    Between 0.5 and 2.0 the first output comes after 60 to 100 ms of input, at the ends of the range after 80 to 140 ms.
    At speed 1.0 samples pass through untouched.
    """

    def __init__(self, rate_hz: int, speed: float) -> None:
        """
        Raises:
            ValueError: a speed outside 0.125-8.0.
        """
        _check(speed, _STRETCH_MIN, _STRETCH_MAX)
        self._rate_hz = rate_hz
        self._speed = speed
        self._taken = 0
        self._given = 0
        self._short: IntSamples = np.empty(0, np.int16)
        stages = max(1, math.ceil(math.log(speed, _STAGE_MIN)), math.ceil(math.log(speed, _STAGE_MAX)))
        tempos = [("atempo", repr(speed ** (1 / stages)))] * stages
        self._filter = FilterChain(rate_hz, *tempos) if speed != 1.0 else None

    def push(self, samples: IntSamples) -> IntSamples:
        """Take samples, shape ``(n,)``; return the output that is final."""
        if self._filter is None:
            return samples
        self._taken += samples.size
        samples, self._short = np.concatenate([self._short, samples]), samples[:0]
        if samples.size < _MIN_SAMPLES:
            self._short = samples
            return samples[:0]
        out = self._filter.push(samples)
        self._given += out.size
        return out

    def finish(self) -> IntSamples:
        """Return the remaining samples."""
        if self._filter is None or not self._taken:
            return np.empty(0, np.int16)
        missing = round(self._taken / self._speed) - self._given
        silence = np.zeros(math.ceil(_TAIL_S * self._rate_hz * max(self._speed, 1.0)), np.int16)
        last = self._filter.push(np.concatenate([self._short, silence]))
        return np.concatenate([last, self._filter.finish()])[: max(missing, 0)]


class StretchedEncoder:
    """An encoder whose input is time-stretched."""

    def __init__(self, encoder: AudioEncoder, speed: float) -> None:
        """
        Raises:
            ValueError: a speed outside 0.25-4.0.
        """
        _check(speed, SPEED_MIN, SPEED_MAX)
        self.media_type = encoder.media_type
        self._encoder = encoder
        self._speed = speed

    def start(self, sample_rate_hz: int) -> bytes:
        self._stretch = TimeStretch(sample_rate_hz, self._speed)
        return self._encoder.start(sample_rate_hz)

    def push(self, samples: IntSamples) -> bytes:
        return self._encoder.push(self._stretch.push(samples))

    def flush(self) -> bytes:
        return self._encoder.flush()

    def finish(self) -> bytes:
        return self._encoder.push(self._stretch.finish()) + self._encoder.finish()


def stretched(encoder: AudioEncoder, speed: float) -> AudioEncoder:
    """The encoder with its input time-stretched; the encoder itself at speed 1.0.

    Raises:
        ValueError: a speed outside 0.25-4.0.
    """
    return encoder if speed == 1.0 else StretchedEncoder(encoder, speed)


def _check(speed: float, low: float, high: float) -> None:
    if not low <= speed <= high:
        raise ValueError(f"speed {speed} is outside {low}-{high}")
