"""The BigVGAN vocoder: converts frames to samples.

A frame is a GPT latent in 1.5 and a column of a mel spectrogram in 2.x; 1.5 also takes a speaker embedding. Attribute
names are those of the checkpoint, after folding weight norm and the scale of the snake activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streaming_server.engines.indextts.speaker import SpeakerEncoder
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.activation import REACH, AliasFreeSnake

Bound = Literal["tanh", "clamp"]

EDGE_KERNEL = 7
"""Kernel size of the first and of the last convolution."""


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
                sum((size // 2) * (dilation + 1) + 2 * REACH for dilation in dilations)
                for size, dilations in zip(self.block_kernels, self.block_dilations, strict=True)
            )
            frames += samples / rate
        frames += (REACH + EDGE_KERNEL // 2) / rate
        return math.ceil(frames)


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
