"""Raw samples: their valid range, float to 16-bit, and one sample rate to another as a stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from streaming_server.audio.filters import FilterChain
from streaming_server.domain import FloatSamples, IntSamples

_FULL_SCALE = 32768.0
LINEAR_BELOW, _HEADROOM = 0.7, 0.98
MAX_AMPLITUDE = 10.0
"""Largest magnitude of a sample in a recording, where 1.0 is full scale. A file of larger samples is mislabelled or
damaged, and overflows half precision in a model."""


def amplitude_problem(samples: npt.NDArray[Any]) -> str | None:
    """Why these cannot be the samples of a recording, as the rest of a sentence about it; None if they can."""
    peak = float(np.abs(samples).max(initial=0.0))  # not a number if any sample is not
    if not math.isfinite(peak):
        return "has samples that are not finite numbers"
    if peak > MAX_AMPLITUDE:
        return f"has samples of up to {peak:.3g} times full scale; at most {MAX_AMPLITUDE:g} are allowed"
    return None


def limited(samples: FloatSamples, linear_below: float = LINEAR_BELOW) -> FloatSamples:
    """Limit peaks to full scale, without changes below an amplitude."""
    level = np.abs(samples)
    if level.max(initial=0) <= linear_below:
        return samples
    room = _HEADROOM - linear_below
    rounded = linear_below + room * np.tanh((level - linear_below) / room)
    return np.where(level <= linear_below, samples, np.copysign(rounded, samples)).astype(np.float32)


def to_int16(samples: FloatSamples) -> IntSamples:
    """Quantise samples in -1.0 … 1.0, shape ``(n,)``, to signed 16 bits; values outside are clipped."""
    scaled: FloatSamples = np.rint(samples * np.float32(_FULL_SCALE))
    return scaled.clip(-32768, 32767).astype(np.int16)


def to_float32(samples: IntSamples) -> FloatSamples:
    """The inverse of `to_int16`, exact for every 16-bit value."""
    return samples.astype(np.float32) / np.float32(_FULL_SCALE)


class Resampler:
    """A streaming sample-rate converter (libswresample): the same output for any split of the input.

    The whole output has ``ceil(n * to_hz / from_hz)`` samples for ``n`` of input.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._from_hz = from_hz
        self._to_hz = to_hz
        self._filter = FilterChain(from_hz, ("aresample", str(to_hz)))
        self._taken = 0
        self._given = 0

    def push(self, samples: IntSamples) -> IntSamples:
        """Take samples at ``from_hz``, return the output at ``to_hz`` that is final."""
        if not samples.size:
            return samples
        self._taken += samples.size
        out = self._filter.push(samples)
        self._given += out.size
        return out

    def finish(self) -> IntSamples:
        """Return the remaining samples."""
        if not self._taken:
            return np.empty(0, np.int16)
        rest = self._filter.finish()
        # libswresample returns nothing for an input shorter than half its filter; silence of that length replaces it.
        missing = -(-self._taken * self._to_hz // self._from_hz) - self._given - rest.size
        return np.concatenate([rest, np.zeros(max(missing, 0), np.int16)])
