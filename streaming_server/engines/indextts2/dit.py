"""The flow-matching network, which predicts the velocity of a noisy mel from content and voice.

A transformer with U-ViT skip connections, conditioned on the time by its norms, is followed by a WaveNet. Values that
depend on the time only (``scale_shift``) or are the same in all steps (``rows``) are computed once. Attribute names are
those of the checkpoint, after folding weight norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from streaming_server.engines.indextts2.wavenet import WaveNet

NORM_EPSILON = 1e-5
FINAL_EPSILON = 1e-6
ROTATION_BASE = 10_000.0
TIME_SCALE = 1000.0


@dataclass(frozen=True, slots=True)
class EstimatorShape:
    """Sizes of the network from ``config.yaml`` and the checkpoint."""

    bands: int
    content_width: int
    style_width: int
    width: int
    heads: int
    depth: int
    inner: int
    time_frequencies: int
    wave_width: int
    wave_layers: int
    wave_kernel: int
    wave_dilation: int


@dataclass(frozen=True, slots=True)
class Span:
    """Which frames are valid, and the first frame for which the result is computed."""

    rotation: Tensor
    """Complex factors of the positions, ``(T, head width / 2)``."""
    bias: Tensor
    """`attention_bias` of the valid frames, ``(B, T)`` or, the same for all of a batch, ``(1, T)``."""
    edges: Tensor
    """The argument ``edges`` of ``WaveNet.forward``."""
    start: int
    """The first frame of the result."""

    def repeated(self, times: int) -> Span:
        """For a batch in which each item is repeated so many times."""
        bias = aligned(self.bias.repeat_interleave(times, 0))
        return replace(self, bias=bias, edges=self.edges.repeat_interleave(times, 0))


def attention_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 for frames that are ``seen``, ``(…, T)``, and -inf for the others, which attention ignores."""
    return aligned(torch.where(seen, 0.0, -torch.inf).to(dtype))


def aligned(bias: Tensor) -> Tensor:
    """The same with rows that begin at multiples of 8 elements; CUDA's kernels copy any other in each attention."""
    length = bias.shape[-1]
    return F.pad(bias, (0, -length % 8))[..., :length]


def rotations(length: int, head_width: int) -> Tensor:
    """Complex factors of the rotary position embedding, ``(length, head width / 2)``."""
    frequencies = ROTATION_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def turned(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair of ``(B, T, …, head width)`` by the factor of its position."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    factors = rotation.view(len(rotation), *[1] * (x.ndim - 3), -1)
    return torch.view_as_real(pairs * factors).flatten(-2).to(x.dtype)


class AdaptiveNorm(nn.Module):
    """An RMS norm whose scale and shift depend on the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_layer = nn.Linear(width, 2 * width)
        self.norm = nn.RMSNorm(width, eps=NORM_EPSILON)

    def scale_shift(self, time: Tensor) -> Tensor:
        """Scale and shift for each time ``(S, width)``: ``(S, 2, width)``."""
        scale, shift = self.project_layer(time).chunk(2, dim=-1)
        return torch.stack([scale * self.norm.weight, shift], dim=1)


def normed(x: Tensor, scale_shift: Tensor) -> Tensor:
    """Normalise ``(B, T, width)`` and apply scale and shift, ``(B or 1, 2, width)``."""
    scale, shift = scale_shift[:, 0, None], scale_shift[:, 1, None]
    return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], eps=NORM_EPSILON), scale)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, span: Span, start: int) -> Tensor:
        """Attend to all rows; return the result of the rows from ``start`` on."""
        batch, length, width = x.shape
        if start:
            q = F.linear(x[:, start:], self.wqkv.weight[:width]).view(batch, length - start, self.heads, -1)
            k, v = F.linear(x, self.wqkv.weight[width:]).view(batch, length, 2, self.heads, -1).unbind(2)
            q, k = turned(q, span.rotation[start:]), turned(k, span.rotation)
        else:
            qkv = F.linear(x, self.wqkv.weight).view(batch, length, 3, self.heads, -1)
            (q, k), v = turned(qkv[:, :, :2], span.rotation).unbind(2), qkv[:, :, 2]
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), span.bias[:, None, None]
        )
        result: Tensor = self.wo(out.transpose(1, 2).flatten(2))
        return result


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    def __init__(self, shape: EstimatorShape, skips: bool) -> None:
        super().__init__()
        self.attention_norm = AdaptiveNorm(shape.width)
        self.attention = Attention(shape.width, shape.heads)
        self.ffn_norm = AdaptiveNorm(shape.width)
        self.feed_forward = FeedForward(shape.width, shape.inner)
        self.skip_in_linear = nn.Linear(2 * shape.width, shape.width) if skips else None

    def forward(self, x: Tensor, skipped: Tensor | None, scale_shift: Tensor, span: Span, start: int) -> Tensor:
        """``(B, T, width)``, scales and shifts ``(B or 1, 2, 2, width)`` → ``(B, T - start, width)``."""
        if self.skip_in_linear is not None:
            assert skipped is not None
            x = self.skip_in_linear(torch.cat([x, skipped], dim=-1))
        x = x[:, start:] + self.attention(normed(x, scale_shift[:, 0]), span, start)
        out: Tensor = x + self.feed_forward(normed(x, scale_shift[:, 1]))
        return out


class Transformer(nn.Module):
    def __init__(self, shape: EstimatorShape) -> None:
        super().__init__()
        self.middle = shape.depth // 2
        self.layers = nn.ModuleList(Block(shape, skips=layer > self.middle) for layer in range(shape.depth))
        self.norm = AdaptiveNorm(shape.width)

    def scale_shift(self, time: Tensor) -> Tensor:
        """All scales and shifts, ``(S, (2 · depth + 1), 2, width)``, in the order in which they are used."""
        norms = [norm for norm in self.modules() if isinstance(norm, AdaptiveNorm)]
        return torch.stack([norm.scale_shift(time) for norm in norms], dim=1)

    def forward(self, x: Tensor, scale_shift: Tensor, span: Span) -> Tensor:
        """``(B, T, width)`` → ``(B, T - start, width)``; the last layer computes only the rows of the result."""
        skips: list[Tensor] = []
        last = len(self.layers) - 1
        for index, block in enumerate(self.layers):
            skipped = skips.pop() if index > self.middle else None
            start = span.start if index == last else 0
            x = block(x, skipped, scale_shift[:, 2 * index : 2 * index + 2], span, start)
            if index < self.middle:
                skips.append(x)
        return normed(x, scale_shift[:, -1])


class TimeEmbedder(nn.Module):
    """Times ``(S,)`` from 0 to 1 → ``(S, width)``."""

    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        weight = self.mlp[0].weight
        assert isinstance(weight, Tensor)
        half = weight.shape[1] // 2
        steps = torch.arange(half, device=times.device, dtype=torch.float32) / half
        angles = TIME_SCALE * times[:, None] * torch.exp(-math.log(10_000.0) * steps)
        out: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(weight.dtype))
        return out


class FinalLayer(nn.Module):
    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * width))

    def scale_shift(self, time: Tensor) -> Tensor:
        """Shift and scale for each time, ``(S, 2, width)``."""
        shift, scale = self.adaLN_modulation(time).chunk(2, dim=-1)
        return torch.stack([shift, 1 + scale], dim=1)

    def forward(self, x: Tensor, scale_shift: Tensor) -> Tensor:
        shift, scale = scale_shift[:, 0, None], scale_shift[:, 1, None]
        x = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=FINAL_EPSILON), scale)
        out: Tensor = self.linear(x)
        return out


class Estimator(nn.Module):
    """Predicts the velocity of a noisy mel for each condition in ``rows``."""

    def __init__(self, shape: EstimatorShape) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = Transformer(shape)
        self.cond_projection = nn.Linear(shape.content_width, shape.width)
        self.cond_x_merge_linear = nn.Linear(2 * shape.bands + shape.width + shape.style_width, shape.width)
        self.t_embedder = TimeEmbedder(shape.time_frequencies, shape.width)
        self.t_embedder2 = TimeEmbedder(shape.time_frequencies, shape.wave_width)
        self.skip_linear = nn.Linear(shape.width + shape.bands, shape.width)
        self.conv1 = nn.Linear(shape.width, shape.wave_width)
        self.wavenet = WaveNet(
            shape.wave_width, shape.wave_width, shape.wave_kernel, shape.wave_dilation, shape.wave_layers
        )
        self.res_projection = nn.Linear(shape.width, shape.wave_width)
        self.final_layer = FinalLayer(shape.wave_width, shape.width)
        self.conv2 = nn.Conv1d(shape.wave_width, shape.bands, 1)

    @property
    def scale_shift_width(self) -> int:
        shape = self.shape
        return 2 * ((2 * shape.depth + 1) * shape.width + (shape.wave_layers + 1) * shape.wave_width)

    def scale_shift(self, times: Tensor) -> Tensor:
        """All scales and shifts for times ``(S,)``: ``(S, scale_shift_width)``."""
        time = self.t_embedder(times)
        parts = (
            self.transformer.scale_shift(time),
            self.wavenet.scale_shift(self.t_embedder2(times)),
            self.final_layer.scale_shift(time),
        )
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def rows(self, prompt: Tensor, mu: Tensor, style: Tensor) -> Tensor:
        """The part of the first layer's input that does not depend on the noisy mel.

        Args:
            prompt: Mel of the reference, zero outside it, ``(B, T, bands)``.
            mu: Conditions ``(B, T, content width)``.
            style: ``(B, style width)``.
        """
        cond = torch.cat([prompt, self.cond_projection(mu), style[:, None].expand(-1, mu.shape[1], -1)], dim=-1)
        merge = self.cond_x_merge_linear
        return F.linear(cond, merge.weight[:, self.shape.bands :], merge.bias)

    def forward(self, x: Tensor, rows: Tensor, scale_shift: Tensor, span: Span) -> Tensor:
        """
        Args:
            x: The noisy mels of ``B`` solves, ``(B, T, bands)``.
            rows: For each solve the input of its ``C`` conditions, ``(B, C, T, width)``.
            scale_shift: Scales and shifts of the time of each solve, ``(B, scale_shift_width)``.
            span: Which frames of each solve are valid.

        Returns:
            Velocities ``(B, C, T - start, bands)``.
        """
        shape, (batch, conditions) = self.shape, rows.shape[:2]
        if batch > 1:  # else one row of each is broadcast
            scale_shift, span = scale_shift.repeat_interleave(conditions, 0), span.repeated(conditions)
        sizes = [2 * (2 * shape.depth + 1) * shape.width, 2 * shape.wave_layers * shape.wave_width]
        norms, wave_bias, final = torch.split(scale_shift, [*sizes, 2 * shape.wave_width], dim=1)
        norms = norms.view(len(norms), -1, 2, shape.width)
        h = F.linear(x, self.cond_x_merge_linear.weight[:, : shape.bands])[:, None] + rows
        h = self.transformer(h.flatten(0, 1), norms, span)  # (B · C, T - start, width)
        kept = x[:, None, span.start :].expand(-1, conditions, -1, -1).flatten(0, 1)
        h = self.skip_linear(torch.cat([h, kept], dim=-1))
        wave = self.wavenet(self.conv1(h).mT, wave_bias.view(len(norms), shape.wave_layers, -1), span.edges).mT
        wave = self.final_layer(wave + self.res_projection(h), final.view(len(norms), 2, -1))
        out: Tensor = self.conv2(wave.mT).mT
        return out.view(batch, conditions, *out.shape[1:])
