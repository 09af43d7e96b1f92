"""Frames to samples in pieces, optionally with a change of voice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hibari import dsp

from streaming_server.audio.pcm import limited
from streaming_server.domain import FloatSamples
from streaming_server.engines.hibari.network import BINS, SAMPLE_RATE_HZ, VOICED_HZ, Frames

NATIVE_PITCH_HZ = 195.0
"""Median pitch of the network's voice, the centre of the pitch range."""
FIRST_FRAMES, PIECE_FRAMES = 12, 48
"""Number of frames in the first piece of a clause and in later pieces."""
_OVERLAP = dsp.N_FFT // dsp.HOP
_WINDOW_SUM = float(np.square(dsp.WIN).sum() / dsp.HOP)
_LOG_PER_DB = float(np.log(10) / 20)
_KHZ = np.linspace(0, SAMPLE_RATE_HZ / 2000, BINS, dtype=np.float32)
_TILT_CENTRE_KHZ = 0.4
_BIN_HZ = SAMPLE_RATE_HZ / dsp.N_FFT
_FREE_VOICED_DB, _FREE_BELOW_HZ = -12.0, 2000
"""The free component of voiced frames contains residual native harmonics, which are out of tune at another pitch."""


@dataclass(frozen=True, slots=True)
class Timbre:
    """A change of the network's voice."""

    pitch: float = 1.0
    """Factor of the fundamental frequency."""
    formants: float = 1.0
    """Factor of the formants' frequencies."""
    pitch_range: float = 1.0
    """Factor of the distance from the median, in octaves; 0 is monotone."""
    rate: float = 1.0
    """Factor of the speaking rate."""
    gain_db: float = 0.0
    tilt_db: float = 0.0
    """Spectral tilt in decibels per octave around 400 Hz."""
    breath_db: float = 0.0
    """Gain of the noise."""


def render(frames: Frames, timbre: Timbre, rng: np.random.Generator) -> Iterator[FloatSamples]:
    """Yield the samples of a clause at 24 kHz in pieces: ``hibari.dsp.synth`` with a change of voice.

    Args:
        frames: at least one frame.
        timbre: the change of voice.
        rng: draws the noise.
    """
    frames = _at_rate(frames, timbre.rate)
    count = frames.f0_hz.size
    f0_hz = _f0_hz(frames.f0_hz, timbre)
    # the first piece does not wait for the pulses of the complete clause
    windows = _windows(f0_hz[: FIRST_FRAMES + _OVERLAP], timbre)
    warp, gain = _Warp(timbre), _log_gain(timbre)
    carry = np.zeros((_OVERLAP - 1, dsp.HOP), np.float32)
    begin = 0
    while begin < count:
        end = min(begin + (PIECE_FRAMES if begin else FIRST_FRAMES), count)
        spectra = warp(frames.take(slice(begin, end)))
        spectrum = _spectrum(windows[begin:end], spectra, gain, timbre.breath_db * _LOG_PER_DB, rng)
        parts = np.fft.irfft(spectrum, dsp.N_FFT, axis=1).astype(np.float32, copy=False) * dsp.WIN
        parts = parts.reshape(end - begin, _OVERLAP, dsp.HOP)
        sums = np.zeros((end - begin + _OVERLAP - 1, dsp.HOP), np.float32)
        sums[: _OVERLAP - 1] = carry
        for shift in range(_OVERLAP):
            sums[shift : shift + end - begin] += parts[:, shift]
        settled, carry = np.split(sums, [end - begin])
        if end == count:  # half a window follows the centre of the last frame
            settled = sums[: end - begin + _OVERLAP // 2]
        # half a window precedes the centre of the first frame
        settled = settled[0 if begin else _OVERLAP // 2 :]
        yield limited((settled.reshape(-1) / _WINDOW_SUM).astype(np.float32))
        if not begin:
            windows = _windows(f0_hz, timbre)
        begin = end


def _windows(f0_hz: FloatSamples, timbre: Timbre) -> FloatSamples:
    """The pulse train under the window of each frame, shape ``(n + 1, 1200)``."""
    pulses = np.pad(dsp.pulses(f0_hz, VOICED_HZ * timbre.pitch), dsp.N_FFT // 2, mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(pulses, dsp.N_FFT)[:: dsp.HOP]


def _spectrum(
    windows: FloatSamples,
    spectra: list[FloatSamples],
    gain: FloatSamples,
    breath: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.complex64]:
    """Short-time spectra, shape ``(n, 601)``."""
    harmonic, harmonic_phase, noise, free, free_phase = spectra
    spectrum = np.fft.rfft(windows * dsp.WIN_SRC, axis=1).astype(np.complex64, copy=False)
    spectrum *= dsp.ex(harmonic + gain) * _rotation(np.float32(np.pi) * np.tanh(harmonic_phase))
    drawn = rng.standard_normal((len(noise), 2 * BINS), dtype=np.float32).view(np.complex64)
    spectrum += drawn * dsp.ex(noise + gain + np.float32(breath))
    spectrum += dsp.ex(free + gain) * _rotation(free_phase)
    return spectrum


def _rotation(phase: FloatSamples) -> npt.NDArray[np.complex64]:
    rotation = np.empty(phase.shape, np.complex64)
    np.cos(phase, out=rotation.real)
    np.sin(phase, out=rotation.imag)
    return rotation


class _Warp:
    """Return spectra for another pitch and other formants: bin k of the result is bin k / formants of the network's.

    Between the harmonics of its own pitch the network's harmonic spectra are undefined, because training had no energy
    there; another pitch uses the values at those harmonics and interpolates between them.
    """

    def __init__(self, timbre: Timbre) -> None:
        self._source: FloatSamples = np.minimum(np.arange(BINS) / timbre.formants, BINS - 1).astype(np.float32)
        self._low = np.minimum(self._source.astype(np.intp), BINS - 2)
        self._share = (self._source - self._low).astype(np.float32)
        self._has_own_pitch = timbre.pitch == 1.0 and timbre.pitch_range == 1.0
        self._has_own_formants = timbre.formants == 1.0

    def __call__(self, frames: Frames) -> list[FloatSamples]:
        """The five spectra, each of shape ``(n, 601)``."""
        columns = [np.ascontiguousarray(spectrum.T) for spectrum in frames.spectra]
        if self._has_own_pitch:
            return columns if self._has_own_formants else [self._warped(spectrum) for spectrum in columns]
        harmonic, harmonic_phase, noise, free, free_phase = columns
        is_voiced = frames.f0_hz >= VOICED_HZ
        free[is_voiced, : int(_FREE_BELOW_HZ / _BIN_HZ)] += np.float32(_FREE_VOICED_DB * _LOG_PER_DB)
        # position of each bin among the harmonics; the first harmonic is used for all bins below it
        spacing = (np.maximum(frames.f0_hz, VOICED_HZ) / np.float32(_BIN_HZ))[:, np.newaxis]
        position = np.maximum(self._source / spacing, 1)
        lower = np.floor(position)
        share = position - lower
        low = np.minimum(np.rint(lower * spacing).astype(np.intp), BINS - 1)
        high = np.minimum(np.rint((lower + 1) * spacing).astype(np.intp), BINS - 1)
        envelope = [
            np.take_along_axis(spectrum, low, 1) * (1 - share) + np.take_along_axis(spectrum, high, 1) * share
            for spectrum in (harmonic, harmonic_phase)
        ]
        return [*envelope, *(self._warped(spectrum) for spectrum in (noise, free, free_phase))]

    def _warped(self, columns: FloatSamples) -> FloatSamples:
        if self._has_own_formants:
            return columns
        low = columns[:, self._low]
        warped: FloatSamples = low + (columns[:, self._low + 1] - low) * self._share
        return warped


def _at_rate(frames: Frames, rate: float) -> Frames:
    if rate == 1.0:
        return frames
    count = max(round(frames.f0_hz.size / rate), 1)
    return frames.take(np.minimum(np.arange(count) * rate, frames.f0_hz.size - 1).round().astype(np.intp))


def _f0_hz(f0_hz: FloatSamples, timbre: Timbre) -> FloatSamples:
    if timbre.pitch_range != 1.0:
        voiced = np.maximum(f0_hz, VOICED_HZ)
        ranged = NATIVE_PITCH_HZ * (voiced / NATIVE_PITCH_HZ) ** np.float32(timbre.pitch_range)
        f0_hz = np.where(f0_hz < VOICED_HZ, f0_hz, np.maximum(ranged, VOICED_HZ))
    return (f0_hz * timbre.pitch).astype(np.float32)


def _log_gain(timbre: Timbre) -> FloatSamples:
    """Added to log magnitudes, shape ``(601,)``."""
    octaves = np.log2(np.clip(_KHZ, 0.1, 8.0) / _TILT_CENTRE_KHZ)
    gain: FloatSamples = ((timbre.gain_db + timbre.tilt_db * octaves) * _LOG_PER_DB).astype(np.float32)
    return gain
