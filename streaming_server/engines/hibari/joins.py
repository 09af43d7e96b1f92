"""Joins clauses: trims and inserts silence, and matches the level of the other engine."""

from __future__ import annotations

import numpy as np

from streaming_server.audio.pcm import Resampler, to_float32, to_int16
from streaming_server.domain import FloatSamples
from streaming_server.engines.hibari.network import SAMPLE_RATE_HZ, VOICED_HZ, Frames

LEVEL_DBFS = -21.0
"""Root mean square of neutral speech without pauses: about -23 LUFS."""
_SILENT_DB = -55.0
"""Threshold of silence below the loudest frame."""
_MARGIN_BEFORE, _MARGIN_AFTER = 2, 4
"""Number of frames kept around the speech."""
_BIN_STEP = 6
_FADE_S = 0.005
_MEASURED_S = 1.0
_MAX_GAIN = 8.0
_PEAK = 0.97


def trimmed(frames: Frames) -> Frames:
    """Return the frames without silence at both ends; none if all are silent."""
    return frames.take(sounding(frames))


def sounding(frames: Frames) -> slice:
    """Return the range from the first to the last frame that is not silent, with a margin; empty if all are silent."""
    power = 2 * np.exp(2 * frames.noise[::_BIN_STEP]) + np.exp(2 * frames.free[::_BIN_STEP])
    power += np.exp(2 * frames.harmonic[::_BIN_STEP]) * (frames.f0_hz >= VOICED_HZ)
    level_db = 10 * np.log10(power.sum(axis=0) + 1e-20)
    loud = np.flatnonzero(level_db > level_db.max() + _SILENT_DB)
    if level_db.max() < _SILENT_DB:
        return slice(0, 0)
    return slice(max(loud[0] - _MARGIN_BEFORE, 0), loud[-1] + 1 + _MARGIN_AFTER)


def silence(duration_s: float) -> FloatSamples:
    """Shape ``(n,)`` at 24 kHz."""
    return np.zeros(round(duration_s * SAMPLE_RATE_HZ), np.float32)


def active_rms(samples: FloatSamples) -> float:
    """Return the root mean square of the loud 10 ms blocks; 0 if there are none."""
    size = SAMPLE_RATE_HZ // 100
    blocks = samples[: samples.size // size * size].reshape(-1, size)
    if not blocks.size:
        return 0.0
    power = np.square(blocks).mean(axis=1)
    return float(np.sqrt(power[power >= 0.01 * power.max()].mean()))


class Levelled:
    """Adjusts the speech of another engine to `LEVEL_DBFS` with one gain per request."""

    def __init__(self, gain_db: float = 0.0) -> None:
        self.target = 10 ** ((LEVEL_DBFS + gain_db) / 20)
        self.gain: float | None = None

    def joined(self, rate_hz: int) -> Joined:
        """Create the leveller of one part of the text."""
        return Joined(self, rate_hz)


class Joined:
    """One part at 24 kHz and the level of its request, faded in and out."""

    def __init__(self, level: Levelled, rate_hz: int) -> None:
        self._level = level
        self._resampler = Resampler(rate_hz, SAMPLE_RATE_HZ)
        self._held: FloatSamples = np.empty(0, np.float32)
        """Buffered samples: all until the gain is known, then those for the fade-out."""
        self._is_first = True
        self._fade: FloatSamples = np.linspace(0, 1, round(_FADE_S * SAMPLE_RATE_HZ), dtype=np.float32)

    def push(self, samples: FloatSamples) -> FloatSamples:
        """Add samples at the other engine's rate and return those that are final."""
        self._hold(to_float32(self._resampler.push(to_int16(samples))))
        if self._level.gain is None and self._held.size < _MEASURED_S * SAMPLE_RATE_HZ:
            return self._held[:0]
        return self._given(max(self._held.size - self._fade.size, 0))

    def finish(self) -> FloatSamples:
        """Return the remaining samples."""
        self._hold(to_float32(self._resampler.finish()))
        size = min(self._fade.size, self._held.size)
        self._held[self._held.size - size :] *= self._fade[:size][::-1]
        return self._given(self._held.size)

    def _hold(self, samples: FloatSamples) -> None:
        self._held = np.concatenate([self._held, samples])

    def _given(self, count: int) -> FloatSamples:
        if self._level.gain is None and self._held.size:
            self._level.gain = min(self._level.target / max(active_rms(self._held), 1e-6), _MAX_GAIN)
        given, self._held = self._held[:count].copy(), self._held[count:]
        if self._is_first and given.size:
            self._is_first = False
            size = min(self._fade.size, given.size)
            given[:size] *= self._fade[:size]
        scaled: FloatSamples = np.clip(given * np.float32(self._level.gain or 1.0), -_PEAK, _PEAK)
        return scaled
