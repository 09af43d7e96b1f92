"""The BigVGAN vocoder: converts frames to samples, all at once or chunk by chunk.

A frame is a GPT latent in 1.5 and a column of a mel spectrogram in 2.x; 1.5 also takes a speaker embedding. Attribute
names are those of the checkpoint, after folding weight norm and the scale of the snake activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from streaming_server.engines.indextts.speaker import SpeakerEncoder
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.arrays import Array, take
from streaming_server.engines.torch.graphs import Graphs

Bound = Literal["tanh", "clamp"]

EDGE_KERNEL = 7
"""Kernel size of the first and of the last convolution."""

FILTER_TAPS = 12
FILTER_CUTOFF = 0.25
FILTER_HALF_WIDTH = 0.3
ACTIVATION_REACH = 3
"""Samples to either side that affect an alias-free activation; the contribution of samples beyond is below 1e-6."""


GROWTH = 1.25
"""Ratio of two recorded lengths for wholes: larger ones need fewer graphs and compute more frames twice."""


@dataclass(frozen=True, slots=True)
class GeneratorShape:
    """Sizes of the generator from its configuration."""

    frame_width: int
    first_width: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    block_kernels: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]

    @classmethod
    def read(cls, config: Mapping[str, Any], frame_width: int) -> GeneratorShape:
        """Read the sizes from the BigVGAN section of a configuration; all versions use the same keys."""
        return cls(
            frame_width=frame_width,
            first_width=config["upsample_initial_channel"],
            rates=tuple(config["upsample_rates"]),
            kernels=tuple(config["upsample_kernel_sizes"]),
            block_kernels=tuple(config["resblock_kernel_sizes"]),
            block_dilations=tuple(tuple(dilations) for dilations in config["resblock_dilation_sizes"]),
        )

    @property
    def samples_per_frame(self) -> int:
        return math.prod(self.rates)

    @property
    def reach(self) -> int:
        """Frames to either side that a sample depends on: 31 in 1.5, 34 in 2.x. With that context a chunk is exact."""
        frames = EDGE_KERNEL // 2 + 0.0
        rate = 1
        for up, kernel in zip(self.rates, self.kernels, strict=True):
            frames += kernel / 2 / (rate * up)
            rate *= up
            samples = max(
                sum((size // 2) * (dilation + 1) + 2 * ACTIVATION_REACH for dilation in dilations)
                for size, dilations in zip(self.block_kernels, self.block_dilations, strict=True)
            )
            frames += samples / rate
        frames += (ACTIVATION_REACH + EDGE_KERNEL // 2) / rate
        return math.ceil(frames)


def low_pass() -> Tensor:
    """A Kaiser-windowed sinc filter with unit gain at 0 Hz, ``(FILTER_TAPS,)``."""
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
    """``x + sin²(x · alpha) · beta`` for each channel; ``beta`` is the reciprocal of the checkpoint's value."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))
        self.beta = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, torch.sin(x * self.alpha[:, None]).square(), self.beta[:, None])


class AliasFreeSnake(nn.Module):
    """The snake activation at twice the sampling rate, between two low-pass filters: ``(B, C, T)`` → the same."""

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
    """Pairs of convolutions, the first of each pair dilated, each preceded by an activation."""

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


class Generator(nn.Module):
    """Frames ``(B, T, width)`` → samples ``(B, T · samples_per_frame)`` in -1 … 1.

    Args:
        shape: The sizes.
        bound: How samples are limited to -1 … 1.
        last_bias: Whether the last convolution has a bias.
    """

    def __init__(self, shape: GeneratorShape, bound: Bound = "tanh", last_bias: bool = True) -> None:
        super().__init__()
        self.shape = shape
        self.bound = bound
        self.widths = [shape.first_width // 2**stage for stage in range(len(shape.rates) + 1)]
        self.conv_pre = nn.Conv1d(shape.frame_width, self.widths[0], EDGE_KERNEL, padding=EDGE_KERNEL // 2)
        self.ups = nn.ModuleList(
            nn.ModuleList([nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=(kernel - rate) // 2)])
            for wide, narrow, rate, kernel in zip(
                self.widths, self.widths[1:], shape.rates, shape.kernels, strict=False
            )
        )
        self.resblocks = nn.ModuleList(
            ResidualBlock(width, kernel, dilations)
            for width in self.widths[1:]
            for kernel, dilations in zip(shape.block_kernels, shape.block_dilations, strict=True)
        )
        self.activation_post = AliasFreeSnake(self.widths[-1])
        self.conv_post = nn.Conv1d(self.widths[-1], 1, EDGE_KERNEL, padding=EDGE_KERNEL // 2, bias=last_bias)

    def forward(self, frames: Tensor, *voice: Tensor, check: Check = never_cancelled) -> Tensor:
        """``check`` is called before each residual block."""
        first, stages = self.speaker_bias(*voice)
        x = self.conv_pre(frames.mT)  # (B, first width, T)
        if first is not None:
            x = x + first
        branches = len(self.shape.block_kernels)
        for stage, up in enumerate(self.ups):
            assert isinstance(up, nn.ModuleList)
            x = up[0](x)
            if stages:
                x = x + stages[stage]
            outputs = []
            for block in self.resblocks[stage * branches : (stage + 1) * branches]:
                check()
                outputs.append(block(x))
            x = torch.stack(outputs).mean(0)
        x = self.conv_post(self.activation_post(x)).squeeze(1)
        return torch.tanh(x) if self.bound == "tanh" else x.clamp(-1, 1)

    def speaker_bias(self, *_: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """The speaker conditioning added after the first convolution and in each stage; none in the base class."""
        return None, []


class Vocoder(Generator):
    """The generator of 1.5, conditioned on speaker embeddings ``(B, speaker width)``."""

    def __init__(self, shape: GeneratorShape, speaker_encoder: SpeakerEncoder, speaker_in_each_stage: bool) -> None:
        super().__init__(shape)
        self.speaker_encoder = speaker_encoder
        self.speaker_width = speaker_encoder.size
        self.cond_layer = nn.Conv1d(self.speaker_width, self.widths[0], 1)
        stages = self.widths[1:] if speaker_in_each_stage else []
        self.conds = nn.ModuleList(nn.Conv1d(self.speaker_width, width, 1) for width in stages)

    def speaker_bias(self, *voice: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        speaker = voice[0][..., None]  # (B, speaker width, 1)
        return self.cond_layer(speaker), [cond(speaker) for cond in self.conds]


@dataclass(frozen=True, slots=True)
class Window:
    """A recorded window of a longer sequence, and the frames whose samples are taken from it."""

    start: int
    length: int
    first: int
    end: int


def cover(length: int, recorded: Sequence[int], reach: int) -> list[Window]:
    """Windows of one recorded length that give the exact samples of ``length`` frames; empty if there are none.

    Each frame is taken from a window in which ``reach`` frames, or the end of the sequence, are on either side of it.
    Of the recorded lengths the one with the fewest frames in all is taken.
    """
    counts = {
        size: 1 + math.ceil((length - size) / (size - 2 * reach))
        for size in recorded
        if size < length and size > 2 * reach
    }
    if length in recorded:
        counts[length] = 1
    if not counts:
        return []
    size = min(counts, key=lambda size: (counts[size] * size, counts[size]))
    starts = [min(index * (size - 2 * reach), length - size) for index in range(counts[size])]
    ends = [*(start + size - reach for start in starts[:-1]), length]
    return [Window(start, size, first, end) for start, first, end in zip(starts, [0, *ends[:-1]], ends, strict=True)]


def whole_lengths(recorded: Sequence[int], reach: int, longest: int) -> list[int]:
    """Lengths to record beside ``recorded`` for at most two windows, of at most twice the frames, up to ``longest``."""
    sizes = set(recorded)
    for length in range(1, longest + 1):
        near = [size for size in sizes if length / GROWTH < size <= length]
        if not any(size == length or length <= 2 * (size - reach) for size in near):
            sizes.add(length)
    return sorted(sizes - set(recorded))


class Windows:
    """Runs the generator for a few fixed lengths, each with static buffers and, on CUDA, a recorded graph."""

    def __init__(self, generator: Generator, *voice_widths: int) -> None:
        self._generator = generator
        self._reach = generator.shape.reach
        weight = generator.conv_post.weight
        self._graphs = Graphs(weight.device)
        self._voice = [weight.new_zeros(1, width) for width in voice_widths]
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def lengths(self) -> list[int]:
        return sorted(self._buffers)

    def fit(self, needed: int, available: int) -> int:
        """Return the shortest recorded length from ``needed`` to ``available``, or ``needed`` if there is none.

        A longer left context does not change the result, and a recorded graph is one launch instead of a thousand.
        """
        return next((size for size in self.lengths if needed <= size <= available), needed)

    def record(self, length: int, *, searches: bool = True) -> None:
        """Allocate buffers and, on CUDA, record a graph for this length; does nothing if it is already recorded.

        ``searches``: as for `Graphs.record`.
        """
        if length in self._buffers:
            return
        shape = self._generator.shape
        weight = self._generator.conv_post.weight
        frames = weight.new_zeros(1, length, shape.frame_width)
        samples = weight.new_zeros(1, length * shape.samples_per_frame)
        self._buffers[length] = frames, samples
        self._graphs.record(length, lambda: self._fill(length), searches=searches)

    def record_wholes(self, longest: int) -> None:
        """Record what is missing for any number of frames up to ``longest`` to be run in at most two windows."""
        for length in whole_lengths(self.lengths, self._reach, longest):
            self.record(length, searches=False)

    def __call__(self, frames: Tensor, *voice: Tensor, check: Check = never_cancelled) -> Tensor:
        """Frames ``(n, width)`` and, in 1.5, the speaker embedding → samples ``(n · samples_per_frame,)``.

        A number of frames that is not recorded is run in recorded windows, whose samples are exact where they are used.
        """
        length = frames.shape[0]
        if length in self._buffers:
            return self._run(frames, *voice)
        windows = cover(length, self.lengths, self._reach)
        if not windows:
            output: Tensor = self._generator(frames[None], *(embedding[None] for embedding in voice), check=check)
            return output[0]
        rate, pieces = self._generator.shape.samples_per_frame, []
        for window in windows:
            check()
            samples = self._run(frames[window.start : window.start + window.length], *voice)
            pieces.append(samples[(window.first - window.start) * rate : (window.end - window.start) * rate])
        return torch.cat(pieces)

    def _run(self, frames: Tensor, *voice: Tensor) -> Tensor:
        """Run the recorded window of exactly these frames."""
        length = frames.shape[0]
        inputs, samples = self._buffers[length]
        inputs[0] = frames
        for buffer, embedding in zip(self._voice, voice, strict=True):
            buffer[0] = embedding
        self._graphs.run(length, lambda: self._fill(length))
        return samples[0].clone()

    def _fill(self, length: int) -> None:
        frames, samples = self._buffers[length]
        samples.copy_(self._generator(frames, *self._voice))


class ChunkedVocoder:
    """Vocodes latents incrementally: each push returns the samples of all codes followed by ``look_ahead`` codes.

    Every chunk is vocoded with at least ``reach`` codes of left context and ``look_ahead`` codes of right context. With
    ``look_ahead == reach`` the samples equal those of vocoding all latents at once.
    """

    def __init__(
        self, windows: Windows, speaker: Tensor, shape: GeneratorShape, look_ahead: int, check: Check = never_cancelled
    ) -> None:
        self._windows = windows
        self._check = check
        self._speaker = speaker
        self._samples_per_code = shape.samples_per_frame
        self._reach = shape.reach
        self._look_ahead = look_ahead
        self._keep = max([shape.reach, *windows.lengths])
        self._latents = speaker.new_empty(0, shape.frame_width)
        self._emitted = 0
        """Number of codes at the front of ``_latents`` whose samples have been returned."""

    def push(self, latents: Array) -> Tensor:
        """Add latents ``(n, width)`` and return the samples that are final, possibly none; float32."""
        self._take(latents)
        return self._emit(self._latents.shape[0] - self._look_ahead)

    def finish(self, latents: Array | None = None) -> Tensor:
        """Add the last latents, if any, return all remaining samples, and reset the vocoder."""
        if latents is not None:
            self._take(latents)
        samples = self._emit(self._latents.shape[0])
        self._latents, self._emitted = self._latents[:0], 0
        return samples

    def _take(self, latents: Array) -> None:
        more = take(latents, 2, self._latents.device, self._latents.dtype)
        self._latents = torch.cat([self._latents, more])

    def _emit(self, ready: int) -> Tensor:
        """Return the samples of the codes from ``_emitted`` to ``ready``."""
        if ready <= self._emitted:
            return self._speaker.new_empty(0, dtype=torch.float32)
        length = self._latents.shape[0]
        needed = length - max(0, self._emitted - self._reach)
        first = length - self._windows.fit(needed, length)
        samples = self._windows(self._latents[first:], self._speaker, check=self._check)
        end = None if ready == length else (ready - first) * self._samples_per_code
        chunk = samples[(self._emitted - first) * self._samples_per_code : end]
        dropped = max(0, ready - self._keep)
        self._latents = self._latents[dropped:]
        self._emitted = ready - dropped
        return chunk.float()
