"""The conditioning encoder of the GPT: a Conformer over the log-mel and a Perceiver that pools it into a few latents.

Attribute names are those of the checkpoint.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def sinusoids(length: int, width: int) -> Tensor:
    """Absolute position encodings as interleaved sines and cosines: ``(length, width)``."""
    steps = torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * steps.exp()  # (length, ceil(width / 2))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


class Subsampling(nn.Module):
    """Halves the frame rate: ``(B, T, mels)`` → ``(B, (T - 1) // 2, width)``."""

    def __init__(self, n_mels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, width, 3, stride=2), nn.ReLU())
        self.out = nn.Sequential(nn.Linear(width * ((n_mels - 1) // 2), width))
        self.scale = math.sqrt(width)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv(mel.unsqueeze(1))  # (B, width, T', mels')
        out: Tensor = self.out(x.transpose(1, 2).flatten(2))  # (B, T', width)
        return out * self.scale


class PositionAttention(nn.Module):
    """Self-attention that adds the absolute positions ``(T, width)`` to the scores only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, width // heads))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q = self.linear_q(x).unflatten(-1, (self.heads, -1))  # (B, T, heads, d)
        k = self.linear_k(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, d)
        v = self.linear_v(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        p = self.linear_pos(positions).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (heads, T, d)
        by_content = (q + self.pos_bias_u).transpose(1, 2) @ k.mT  # (B, heads, T, T)
        by_position = (q + self.pos_bias_v).transpose(1, 2) @ p.mT
        weights = ((by_content + by_position) / math.sqrt(q.shape[-1])).softmax(-1)
        out: Tensor = self.linear_out((weights @ v).transpose(1, 2).flatten(2))
        return out


class ConvolutionModule(nn.Module):
    """Gated depthwise convolution over time, ``(B, T, width)`` → the same."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1)
        self.depthwise_conv = nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise_conv(F.glu(self.pointwise_conv1(x.mT), dim=1))  # (B, width, T)
        x = F.silu(self.norm(x.mT))
        out: Tensor = self.pointwise_conv2(x.mT)
        return out.mT


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(F.silu(self.w_1(x)))
        return out


class ConformerBlock(nn.Module):
    """Attention, convolution and feed-forward, each with a pre-norm; a final norm follows."""

    def __init__(self, width: int, inner: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.self_attn = PositionAttention(width, heads)
        self.conv_module = ConvolutionModule(width, kernel)
        self.feed_forward = FeedForward(width, inner)
        self.norm_mha = nn.LayerNorm(width)
        self.norm_conv = nn.LayerNorm(width)
        self.norm_ff = nn.LayerNorm(width)
        self.norm_final = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions)
        x = x + self.conv_module(self.norm_conv(x))
        x = x + self.feed_forward(self.norm_ff(x))
        out: Tensor = self.norm_final(x)
        return out


class Conformer(nn.Module):
    """Log-mel ``(B, T, mels)`` → ``(B, (T - 1) // 2, width)``."""

    def __init__(self, n_mels: int, width: int, inner: int, heads: int, blocks: int, kernel: int) -> None:
        super().__init__()
        self.embed = Subsampling(n_mels, width)
        self.encoders = nn.ModuleList(ConformerBlock(width, inner, heads, kernel) for _ in range(blocks))
        self.after_norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor) -> Tensor:
        x: Tensor = self.embed(mel)
        positions = sinusoids(x.shape[1], x.shape[2]).to(x)
        for block in self.encoders:
            x = block(x, positions)
        out: Tensor = self.after_norm(x)
        return out


class CrossAttention(nn.Module):
    """Attention from the latents to the latents and the context."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        q = self.to_q(latents).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, latents, d)
        keys_values = self.to_kv(torch.cat([latents, context], dim=1)).unflatten(-1, (2, self.heads, -1))
        k, v = keys_values.permute(2, 0, 3, 1, 4)  # each (B, heads, latents + T, d)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        out: Tensor = self.to_out((weights @ v).transpose(1, 2).flatten(2))
        return out


class GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate) * value


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1]) * self.gamma


class Perceiver(nn.Module):
    """A context ``(B, T, context width)`` of any length → ``(B, latents, width)``."""

    def __init__(
        self, width: int, context_width: int, heads: int, head_width: int, inner: int, depth: int, latents: int
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(latents, width))
        self.proj_context = nn.Linear(context_width, width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    CrossAttention(width, heads, head_width),
                    nn.Sequential(nn.Linear(width, 2 * inner), GEGLU(), nn.Linear(inner, width)),
                ]
            )
            for _ in range(depth)
        )
        self.norm = RMSNorm(width)

    def forward(self, context: Tensor) -> Tensor:
        context = self.proj_context(context)
        x = self.latents.expand(context.shape[0], -1, -1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attention, feed_forward = layer
            x = attention(x, context) + x
            x = feed_forward(x) + x
        out: Tensor = self.norm(x)
        return out
