"""Features of a recording: log-mel at 22 050 Hz, Kaldi filter banks at 16 kHz, and the input of w2v-BERT.

Runs on the CPU in float32, once per recording. The mel scale is Slaney's (Auditory Toolbox, 1998); the filter banks
equal those of Kaldi's ``compute-fbank-feats``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SAMPLE_RATE_HZ = 22_050
ANALYSIS_RATE_HZ = 16_000
"""The input rate of w2v-BERT and CAMPPlus."""

MEL_FLOOR = 1e-5
MIN_POWER = 1e-9

FRAME = ANALYSIS_RATE_HZ * 25 // 1000
STEP = ANALYSIS_RATE_HZ * 10 // 1000
FBANK_FFT = 512
FBANK_BANDS = 80
LOWEST_HZ = 20.0
PRE_EMPHASIS = 0.97
POVEY_POWER = 0.85
FBANK_FLOOR = 1.1920929e-07
"""The machine epsilon of float32, so that silence has a finite logarithm."""

STACKED = 2
"""Filter-bank frames per frame of w2v-BERT."""
PADDING_VALUE = 1.0
VARIANCE_FLOOR = 1e-7


@dataclass(frozen=True, slots=True)
class MelShape:
    """Parameters of the log-mel from ``s2mel.preprocess_params`` in ``config.yaml``."""

    rate_hz: int = SAMPLE_RATE_HZ
    fft: int = 1024
    window: int = 1024
    hop: int = 256
    bands: int = 80
    lowest_hz: float = 0.0
    highest_hz: float | None = None
    """None: half the sampling rate."""


def slaney_filters(shape: MelShape) -> Tensor:
    """Triangles of equal area on Slaney's scale, linear below 1 kHz, logarithmic above: ``(bands, fft // 2 + 1)``."""
    top = shape.highest_hz or shape.rate_hz / 2
    knee, step = 15.0, math.log(6.4) / 27  # 1 kHz is 15 mels, 6.4 kHz is 27 mels more

    def mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else knee + math.log(hz / 1000) / step

    mels = torch.linspace(mel(shape.lowest_hz), mel(top), shape.bands + 2, dtype=torch.float64)
    edges = torch.where(mels < knee, mels * 200 / 3, 1000 * ((mels - knee) * step).exp())
    bins = torch.linspace(0, shape.rate_hz / 2, shape.fft // 2 + 1, dtype=torch.float64)
    return (triangles(edges, bins) * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


def triangles(edges: Tensor, bins: Tensor) -> Tensor:
    """Triangular filters ``(n, bins)`` over three consecutive ``edges (n + 2,)``, each 1 at the middle edge."""
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def log_mel(wav: Tensor, shape: MelShape) -> Tensor:
    """Samples ``(n,)`` at ``shape.rate_hz`` → natural logarithm of the mel magnitudes ``(bands, n // hop)``.

    Raises:
        ValueError: there are too few samples for one frame or for reflection padding.
    """
    padding = (shape.fft - shape.hop) // 2
    if wav.numel() <= max(padding, shape.hop - 1):
        raise ValueError(f"a reference needs more than {padding} samples at {shape.rate_hz} Hz; it has {wav.numel()}")
    padded = F.pad(wav[None], (padding, padding), mode="reflect")[0]
    spectrum = torch.stft(
        padded, shape.fft, shape.hop, shape.window, torch.hann_window(shape.window), center=False, return_complex=True
    )  # (bins, frames)
    magnitude = (spectrum.real.square() + spectrum.imag.square() + MIN_POWER).sqrt()
    return (slaney_filters(shape) @ magnitude).clamp(min=MEL_FLOOR).log()


def kaldi_filters() -> Tensor:
    """Triangles of equal width on Kaldi's mel scale from 20 Hz to half the sampling rate: ``(257, bands)``."""
    nyquist = ANALYSIS_RATE_HZ / 2
    bounds = [1127 * math.log1p(hz / 700) for hz in (LOWEST_HZ, nyquist)]
    edges = torch.linspace(bounds[0], bounds[1], FBANK_BANDS + 2, dtype=torch.float64)
    bins = 1127 * (torch.linspace(0, nyquist, FBANK_FFT // 2 + 1, dtype=torch.float64) / 700).log1p()
    return triangles(edges, bins).T.float()


def kaldi_fbank(wav: Tensor) -> Tensor:
    """Samples ``(n,)`` at 16 kHz → logarithms of the band powers ``(1 + (n - 400) // 160, 80)``, without dither.

    Raises:
        ValueError: there are too few samples for one frame.
    """
    if wav.numel() < FRAME:
        raise ValueError(f"a reference needs at least {FRAME} samples at {ANALYSIS_RATE_HZ} Hz; it has {wav.numel()}")
    frames = wav.unfold(0, FRAME, STEP)  # (T, FRAME)
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    window = torch.hann_window(FRAME, periodic=False, dtype=torch.float64).pow(POVEY_POWER).float()
    spectrum = torch.fft.rfft((frames - PRE_EMPHASIS * before) * window, FBANK_FFT)
    power = spectrum.real.square() + spectrum.imag.square()  # (T, FBANK_FFT // 2 + 1)
    bands: Tensor = power @ kaldi_filters()
    return bands.clamp(min=FBANK_FLOOR).log()


INT16_SCALE = 32768.0


def semantic_input(wav: Tensor) -> tuple[Tensor, Tensor]:
    """Samples ``(n,)`` at 16 kHz → w2v-BERT's frames ``(T, 160)`` at 50 Hz and their mask ``(T,)``.

    Each band has mean 0 and variance 1 over the recording. With an odd number of filter-bank frames, half of the last
    frame is padding and its mask is 0.

    Raises:
        ValueError: there are too few samples for two frames, which the variance requires.
    """
    bank = kaldi_fbank(wav * INT16_SCALE)  # (frames, 80)
    if bank.shape[0] < STACKED:
        raise ValueError(f"a reference needs at least {FRAME + STEP} samples at {ANALYSIS_RATE_HZ} Hz")
    bank = (bank - bank.mean(dim=0)) / (bank.var(dim=0) + VARIANCE_FLOOR).sqrt()
    missing = -bank.shape[0] % STACKED
    frames = F.pad(bank, (0, 0, 0, missing), value=PADDING_VALUE).view(-1, STACKED * FBANK_BANDS)
    mask = torch.ones(frames.shape[0], dtype=torch.int32)
    if missing:
        mask[-1] = 0
    return frames, mask


def style_input(wav: Tensor) -> Tensor:
    """Samples ``(n,)`` at 16 kHz → CAMPPlus' frames ``(T, 80)``: each band has mean 0 over the recording."""
    bank = kaldi_fbank(wav)
    return bank - bank.mean(dim=0)
