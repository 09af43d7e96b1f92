"""BigVGAN: GPT latents and a speaker embedding → samples, whole or chunk by chunk.

Attribute names are the checkpoint's, with weight norm and the snakes' scale already folded. This module does not know
codes, text, files, threads or how many latents make a good chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from streaming_server.engines.indextts.arrays import Array, take
from streaming_server.engines.indextts.graphs import Graphs
from streaming_server.engines.indextts.speaker import SpeakerEncoder

EDGE_KERNEL = 7
"""Taps of the first and of the last convolution."""

FILTER_TAPS = 12
FILTER_CUTOFF = 0.25
FILTER_HALF_WIDTH = 0.3
ACTIVATION_REACH = 3
"""Samples to either side that weigh in an alias-free activation; what its filters add beyond is below 1e-6."""


@dataclass(frozen=True, slots=True)
class VocoderShape:
    """Sizes of the generator, as ``config.yaml`` and the checkpoint give them."""

    latent_width: int
    speaker_width: int
    first_width: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    block_kernels: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]
    speaker_in_each_stage: bool

    @property
    def samples_per_code(self) -> int:
        return math.prod(self.rates)

    @property
    def reach(self) -> int:
        """Codes to either side that a sample depends on: 31 for 1.5. With as many, a chunk equals the whole."""
        codes = EDGE_KERNEL // 2 + 0.0
        rate = 1
        for up, kernel in zip(self.rates, self.kernels, strict=True):
            codes += kernel / 2 / (rate * up)
            rate *= up
            samples = max(
                sum((size // 2) * (dilation + 1) + 2 * ACTIVATION_REACH for dilation in dilations)
                for size, dilations in zip(self.block_kernels, self.block_dilations, strict=True)
            )
            codes += samples / rate
        codes += (ACTIVATION_REACH + EDGE_KERNEL // 2) / rate
        return math.ceil(codes)


def low_pass() -> Tensor:
    """A sinc under a Kaiser window, ``(FILTER_TAPS,)``, that leaves a constant as it is."""
    half = FILTER_TAPS // 2
    attenuation = 2.285 * (half - 1) * math.pi * 4 * FILTER_HALF_WIDTH + 7.95  # dB, by Kaiser's estimate
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    window = torch.kaiser_window(FILTER_TAPS, periodic=False, beta=beta, device="cpu")
    taps = window * torch.sinc(2 * FILTER_CUTOFF * (torch.arange(-half, half, device="cpu") + 0.5))
    return taps / taps.sum()


class Snake(nn.Module):
    """``x + sin²(x · alpha) · beta`` for each channel; ``beta`` is the reciprocal of what the checkpoint holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))
        self.beta = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, torch.sin(x * self.alpha[:, None]).square(), self.beta[:, None])


class AliasFreeSnake(nn.Module):
    """The snake at twice the rate, between two low-pass filters: ``(B, C, T)`` → the same."""

    filter: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = Snake(channels)
        self.register_buffer("filter", low_pass(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.filter.expand(channels, 1, FILTER_TAPS)
        x = F.pad(x, (5, 5), mode="replicate")
        x = F.conv_transpose1d(x, 2 * kernel, stride=2, groups=channels)[..., 15:-15]  # (B, C, 2 T)
        x = F.pad(self.act(x), (5, 6), mode="replicate")
        return F.conv1d(x, kernel, stride=2, groups=channels)


class ResidualBlock(nn.Module):
    """Pairs of convolutions, the first of each pair dilated, each behind its activation."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)
            for dilation in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)
        self.activations = nn.ModuleList(AliasFreeSnake(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain, before, between in zip(
            self.convs1, self.convs2, self.activations[::2], self.activations[1::2], strict=True
        ):
            x = x + plain(between(dilated(before(x))))
        return x


class Vocoder(nn.Module):
    """Latents ``(B, T, width)`` and embeddings ``(B, speaker width)`` → samples ``(B, T · samples_per_code)``."""

    def __init__(self, shape: VocoderShape, speaker_encoder: SpeakerEncoder) -> None:
        super().__init__()
        self.shape = shape
        self.speaker_encoder = speaker_encoder
        widths = [shape.first_width // 2**stage for stage in range(len(shape.rates) + 1)]
        self.conv_pre = nn.Conv1d(shape.latent_width, widths[0], EDGE_KERNEL, padding=EDGE_KERNEL // 2)
        self.cond_layer = nn.Conv1d(shape.speaker_width, widths[0], 1)
        self.ups = nn.ModuleList(
            nn.ModuleList([nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=(kernel - rate) // 2)])
            for wide, narrow, rate, kernel in zip(widths, widths[1:], shape.rates, shape.kernels, strict=False)
        )
        stages = widths[1:] if shape.speaker_in_each_stage else []
        self.conds = nn.ModuleList(nn.Conv1d(shape.speaker_width, width, 1) for width in stages)
        self.resblocks = nn.ModuleList(
            ResidualBlock(width, kernel, dilations)
            for width in widths[1:]
            for kernel, dilations in zip(shape.block_kernels, shape.block_dilations, strict=True)
        )
        self.activation_post = AliasFreeSnake(widths[-1])
        self.conv_post = nn.Conv1d(widths[-1], 1, EDGE_KERNEL, padding=EDGE_KERNEL // 2)

    def forward(self, latents: Tensor, speaker: Tensor) -> Tensor:
        speaker = speaker[..., None]  # (B, speaker width, 1)
        x = self.conv_pre(latents.mT) + self.cond_layer(speaker)  # (B, first width, T)
        branches = len(self.shape.block_kernels)
        for stage, up in enumerate(self.ups):
            assert isinstance(up, nn.ModuleList)
            x = up[0](x)
            if self.conds:
                x = x + self.conds[stage](speaker)
            blocks = self.resblocks[stage * branches : (stage + 1) * branches]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        return torch.tanh(self.conv_post(self.activation_post(x))).squeeze(1)


class Windows:
    """The vocoder over a few fixed lengths, each with buffers that keep their place and, on CUDA, a recorded graph."""

    def __init__(self, vocoder: Vocoder) -> None:
        self._vocoder = vocoder
        weight = vocoder.conv_post.weight
        self._graphs = Graphs(weight.device)
        self._speaker = weight.new_zeros(1, vocoder.shape.speaker_width)
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def lengths(self) -> list[int]:
        return sorted(self._buffers)

    def record(self, length: int) -> None:
        shape = self._vocoder.shape
        latents = self._speaker.new_zeros(1, length, shape.latent_width)
        samples = self._speaker.new_zeros(1, length * shape.samples_per_code)
        self._buffers[length] = latents, samples
        self._graphs.record(length, lambda: self._fill(length))

    def __call__(self, latents: Tensor, speaker: Tensor) -> Tensor:
        """Latents ``(n, width)``, embedding ``(speaker width,)`` → samples ``(n · samples_per_code,)``."""
        length = latents.shape[0]
        if length not in self._buffers:
            whole: Tensor = self._vocoder(latents[None], speaker[None])
            return whole[0]
        inputs, samples = self._buffers[length]
        inputs[0] = latents
        self._speaker[0] = speaker
        self._graphs.run(length, lambda: self._fill(length))
        return samples[0].clone()

    def _fill(self, length: int) -> None:
        latents, samples = self._buffers[length]
        samples.copy_(self._vocoder(latents, self._speaker))


class ChunkedVocoder:
    """Samples as latents come: each push gives the samples of all codes that have ``look_ahead`` codes behind them.

    Every chunk is vocoded with at least ``reach`` codes of context on its left and ``look_ahead`` on its right; with
    ``look_ahead == reach`` the samples equal those of vocoding the whole.
    """

    def __init__(self, windows: Windows, speaker: Tensor, shape: VocoderShape, look_ahead: int) -> None:
        self._windows = windows
        self._speaker = speaker
        self._samples_per_code = shape.samples_per_code
        self._reach = shape.reach
        self._look_ahead = look_ahead
        self._keep = max([shape.reach, *windows.lengths])
        self._latents = speaker.new_empty(0, shape.latent_width)
        self._behind = 0
        """Codes at the front of ``_latents`` whose samples have been given out."""

    def push(self, latents: Array) -> Tensor:
        """Latents ``(n, width)`` → the samples that are now settled, perhaps none; float32."""
        self._take(latents)
        return self._emit(self._latents.shape[0] - self._look_ahead)

    def finish(self, latents: Array | None = None) -> Tensor:
        """The last latents, if there are any, and all samples that are left; afterwards the vocoder is as new."""
        if latents is not None:
            self._take(latents)
        samples = self._emit(self._latents.shape[0])
        self._latents, self._behind = self._latents[:0], 0
        return samples

    def _take(self, latents: Array) -> None:
        more = take(latents, 2, self._latents.device, self._latents.dtype)
        self._latents = torch.cat([self._latents, more])

    def _emit(self, ready: int) -> Tensor:
        """Samples of the codes from ``_behind`` to ``ready``."""
        if ready <= self._behind:
            return self._speaker.new_empty(0, dtype=torch.float32)
        length = self._latents.shape[0]
        needed = length - max(0, self._behind - self._reach)
        # A longer left context changes nothing, and a length that was recorded is one launch instead of a thousand.
        window = next((size for size in self._windows.lengths if needed <= size <= length), needed)
        first = length - window
        samples = self._windows(self._latents[first:], self._speaker)
        end = None if ready == length else (ready - first) * self._samples_per_code
        chunk = samples[(self._behind - first) * self._samples_per_code : end]
        forgotten = max(0, ready - self._keep)
        self._latents = self._latents[forgotten:]
        self._behind = ready - forgotten
        return chunk.float()
