"""Changes the tempo, the pitch and the volume of a stream of speech."""

from __future__ import annotations

import numpy as np

from streaming_server.audio.pcm import LINEAR_BELOW, Resampler, limited, to_float32, to_int16
from streaming_server.audio.stretch import TimeStretch
from streaming_server.domain import FloatSamples


class ProsodyFilter:
    """A streaming filter; the same output for any split. Without a change, samples pass through untouched."""

    def __init__(self, rate_hz: int, tempo: float, pitch: float, gain_db: float) -> None:
        """
        Args:
            rate_hz: of the samples.
            tempo: factor of the tempo, 0.25-4.
            pitch: factor of the pitch, which keeps the tempo, 0.5-2.
            gain_db: change of the volume; where it amplifies, peaks are limited to full scale.
        """
        self._gain = np.float32(10 ** (gain_db / 20))
        # Played faster, speech is higher and shorter by the pitch's factor; stretching gives it its length.
        self._resampler = Resampler(round(rate_hz * pitch), rate_hz) if pitch != 1 else None
        speed = tempo / pitch
        self._stretch = TimeStretch(rate_hz, speed) if speed != 1 else None

    def push(self, samples: FloatSamples) -> FloatSamples:
        """Take samples, shape ``(n,)``; return the output that is final."""
        if self._resampler is not None or self._stretch is not None:
            whole = to_int16(samples)
            whole = self._resampler.push(whole) if self._resampler is not None else whole
            whole = self._stretch.push(whole) if self._stretch is not None else whole
            samples = to_float32(whole)
        return self._amplified(samples)

    def finish(self) -> FloatSamples:
        """Return the remaining samples."""
        rest = self._resampler.finish() if self._resampler is not None else np.empty(0, np.int16)
        if self._stretch is not None:
            rest = np.concatenate([self._stretch.push(rest), self._stretch.finish()])
        return self._amplified(to_float32(rest))

    def _amplified(self, samples: FloatSamples) -> FloatSamples:
        if self._gain == 1:
            return samples
        amplified = samples * self._gain
        # A small gain bends only what is near full scale, so that speech never gets quieter by it.
        return amplified if self._gain < 1 else limited(amplified, max(LINEAR_BELOW, min(0.95, 1 / float(self._gain))))
