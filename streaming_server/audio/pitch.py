"""The fundamental frequency of a voice, by autocorrelation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streaming_server.domain import FloatSamples

_LOWEST_HZ, _HIGHEST_HZ = 60.0, 420.0
_VOICED = 0.5


def median_pitch_hz(samples: FloatSamples, sample_rate_hz: int) -> float | None:
    """Median fundamental frequency of the voiced frames; None where nothing is voiced.

    Arguments as for `pitch_hz`.
    """
    found = pitch_hz(samples, sample_rate_hz)
    return float(np.median(found[found > 0])) if found.any() else None


def pitch_hz(samples: FloatSamples, sample_rate_hz: int) -> npt.NDArray[np.floating]:
    """Fundamental frequency of each frame of 50 ms, one every 10 ms, shape ``(frames,)``.

    The normalised autocorrelation, corrected for the window (Boersma 1993, "Accurate short-term analysis of the
    fundamental frequency"), without its path search: a median needs none.

    Args:
        samples: shape ``(n,)``.
        sample_rate_hz: at least 2000.

    Returns:
        Hz, between 60 and 420; 0 where a frame is quiet or not voiced.
    """
    size, hop = sample_rate_hz // 20, sample_rate_hz // 100
    if samples.size < size:
        return np.empty(0)
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    found = np.zeros(len(frames))
    window = np.hanning(size)
    loudness = np.sqrt(np.mean(np.square(frames), axis=1))
    loud = np.flatnonzero(loudness > 0.1 * np.percentile(loudness, 95))
    if not loud.size:
        return found
    frames = frames[loud]
    correlation = _autocorrelation((frames - frames.mean(axis=1, keepdims=True)) * window)
    correlation /= _autocorrelation(window[np.newaxis])
    lags = np.arange(int(sample_rate_hz / _HIGHEST_HZ), int(sample_rate_hz / _LOWEST_HZ) + 1)
    candidates = correlation[:, lags]
    best = candidates.max(axis=1)
    # Multiples of the period correlate nearly as well as the period itself: the shortest good lag is the period.
    good = candidates >= 0.9 * best[:, np.newaxis]
    peaks = good & (candidates >= correlation[:, lags - 1]) & (candidates >= correlation[:, lags + 1])
    voiced = (best > _VOICED) & peaks.any(axis=1)
    found[loud[voiced]] = sample_rate_hz / lags[peaks[voiced].argmax(axis=1)]
    return found


def _autocorrelation(frames: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Normalised to 1 at lag 0; frames of shape ``(m, n)``, result ``(m, n)``."""
    spectrum = np.fft.rfft(frames, 2 * frames.shape[1])
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:, : frames.shape[1]]
    return correlation / np.maximum(correlation[:, :1], 1e-12)
