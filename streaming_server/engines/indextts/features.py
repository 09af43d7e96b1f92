"""Features of a reference recording: resampling to 24 kHz, and the log-mel spectrogram.

Runs on the CPU in float32, once per voice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLE_RATE_HZ = 24_000
N_FFT = 1024
HOP = 256
FLOOR = 1e-7
"""Lower bound of magnitudes, so that silence has a finite logarithm."""

ZERO_CROSSINGS = 6
ROLL_OFF = 0.99
BLOCK = 1 << 16
"""Output samples per block; bounds the memory for a long recording."""


def resample(wav: Tensor, from_hz: int, to_hz: int = SAMPLE_RATE_HZ) -> Tensor:
    """Samples ``(n,)`` at ``from_hz`` → ``(ceil(n · to_hz / from_hz),)`` at ``to_hz``.

    Uses a windowed sinc: Hann window, six zero crossings, roll-off 0.99. The weights are computed per output sample, so
    the cost does not depend on the ratio of the rates.
    """
    if from_hz == to_hz:
        return wav
    common = math.gcd(from_hz, to_hz)
    step, rate = from_hz // common, to_hz // common  # output i lies at input position i · step / rate
    cutoff = min(1.0, rate / step) * ROLL_OFF  # in units of the input's Nyquist frequency
    width = math.ceil(ZERO_CROSSINGS / cutoff)
    length = -(-wav.numel() * rate // step)
    padded = torch.nn.functional.pad(wav.double(), (width, width + 1))
    taps = torch.arange(-width, width + 2)
    blocks = []
    for start in range(0, length, BLOCK):
        position = torch.arange(start, min(start + BLOCK, length)) * step  # (block,), in 1/rate input samples
        centre = position // rate
        distance = (taps - ((position % rate) / rate).double()[:, None]) * cutoff  # (block, taps), in zero crossings
        window = torch.cos(distance.clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS) * (math.pi / ZERO_CROSSINGS / 2)).square()
        weights = torch.sinc(distance) * window * cutoff
        blocks.append((padded[centre[:, None] + taps + width] * weights).sum(1))
    return torch.cat(blocks).float() if blocks else wav


def mel_filters(n_mels: int) -> Tensor:
    """Triangles of equal width on the HTK mel scale from 0 to 12 kHz, not normalised: ``(n_mels, N_FFT // 2 + 1)``."""
    nyquist = SAMPLE_RATE_HZ / 2
    top = 2595 * math.log10(1 + nyquist / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, n_mels + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, nyquist, N_FFT // 2 + 1, dtype=torch.float64)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0).float()


def log_mel(wav: Tensor, n_mels: int = 100) -> Tensor:
    """Samples ``(n,)`` at 24 kHz → natural logarithm of the mel magnitudes ``(n_mels, n // HOP + 1)``.

    Raises:
        ValueError: there are too few samples for reflection padding.
    """
    if wav.numel() <= N_FFT // 2:
        raise ValueError(f"a reference needs more than {N_FFT // 2} samples at 24 kHz; this one has {wav.numel()}")
    spectrum = torch.stft(
        wav, N_FFT, HOP, window=torch.hann_window(N_FFT), center=True, pad_mode="reflect", return_complex=True
    )  # (bins, frames)
    return (mel_filters(n_mels) @ spectrum.abs()).clamp(min=FLOOR).log()
