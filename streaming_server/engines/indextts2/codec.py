"""The semantic codec: converts features of a recording to codes (2.0 only), and codes to content for the flow.

2.0 uses MaskGCT's RepCodec without its decoder. 2.5 uses an EnhancedCodec at half the rate, without its encoder.
Attribute names are those of the checkpoint, after folding weight norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

NORM_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class CodecShape:
    """Sizes of the codec from ``config.yaml`` and the checkpoint."""

    content_width: int
    code_width: int
    codes: int
    width: int
    inner: int
    blocks: int
    kernel: int
    block_kernel: int
    up_kernel: int

    @property
    def reach(self) -> int:
        """Codes to either side that the decoding of a code depends on: 39; in 2.5 the last convolution adds one."""
        return self.kernel // 2 + self.blocks * (self.block_kernel // 2)


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution and two linear layers with a scaled residual: ``(B, width, T)`` → the same."""

    def __init__(self, width: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.pwconv1 = nn.Linear(width, inner)
        self.pwconv2 = nn.Linear(inner, width)
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).mT)  # (B, T, width)
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return torch.add(x, y.mT)


class Backbone(nn.Module):
    """The Vocos backbone: ``(B, T, content width)`` → ``(B, T, width)``."""

    def __init__(self, shape: CodecShape) -> None:
        super().__init__()
        self.embed = nn.Conv1d(shape.content_width, shape.width, shape.kernel, padding=shape.kernel // 2)
        self.norm = nn.LayerNorm(shape.width, eps=NORM_EPSILON)
        self.convnext = nn.ModuleList(
            ConvNeXtBlock(shape.width, shape.inner, shape.block_kernel) for _ in range(shape.blocks)
        )
        self.final_layer_norm = nn.LayerNorm(shape.width, eps=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x.mT).mT).mT  # (B, width, T)
        for block in self.convnext:
            x = block(x)
        out: Tensor = self.final_layer_norm(x.mT)
        return out


class Quantizer(nn.Module):
    """A low-dimensional codebook between two projections; the nearest code has the highest cosine similarity."""

    def __init__(self, shape: CodecShape, encodes: bool) -> None:
        super().__init__()
        if encodes:
            self.in_project = nn.Conv1d(shape.content_width, shape.code_width, 1)
        self.codebook = nn.Embedding(shape.codes, shape.code_width)
        self.out_project = nn.Conv1d(shape.code_width, shape.content_width, 1)

    def nearest(self, x: Tensor) -> Tensor:
        """``(B, T, content width)`` → codes ``(B, T)``."""
        projected = F.normalize(self.in_project(x.mT).mT, dim=-1)
        return (projected @ F.normalize(self.codebook.weight, dim=-1).mT).argmax(-1)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes ``(B, T)`` → ``(B, T, content width)``."""
        out: Tensor = self.out_project(self.codebook(codes).mT)
        return out.mT


class Codec(nn.Module):
    """Common base of both versions: one quantizer at the checkpoint's key path."""

    def __init__(self, shape: CodecShape, encodes: bool) -> None:
        super().__init__()
        self.shape = shape
        self.quantizer = nn.ModuleDict({"quantizers": nn.ModuleList([Quantizer(shape, encodes)])})

    @property
    def first(self) -> Quantizer:
        quantizers = self.quantizer["quantizers"]
        assert isinstance(quantizers, nn.ModuleList)
        quantizer = quantizers[0]
        assert isinstance(quantizer, Quantizer)
        return quantizer

    def vq2emb(self, codes: Tensor) -> Tensor:
        """Codes ``(B, T)`` → ``(B, T, content width)``."""
        return self.first.embed(codes)


class RepCodec(Codec):
    """2.0: features ``(B, T, content width)`` → codes ``(B, T)`` at the same rate."""

    def __init__(self, shape: CodecShape) -> None:
        super().__init__(shape, encodes=True)
        self.encoder = nn.Sequential(Backbone(shape), nn.Linear(shape.width, shape.content_width))

    def forward(self, features: Tensor) -> Tensor:
        return self.first.nearest(self.encoder(features))


class EnhancedCodec(Codec):
    """2.5: codes ``(B, T)`` → content ``(B, 2 T, content width)``."""

    def __init__(self, shape: CodecShape) -> None:
        super().__init__(shape, encodes=False)
        self.decoder = nn.Sequential(Backbone(shape), nn.Linear(shape.width, shape.content_width))
        self.up = nn.Conv1d(shape.content_width, shape.content_width, shape.up_kernel, padding=shape.up_kernel // 2)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.decoder(self.vq2emb(codes)).repeat_interleave(2, dim=1)
        out: Tensor = self.up(x.mT)
        return out.mT
