"""ECAPA-TDNN, the network that computes the speaker embedding for the vocoder.

Attribute names are those of the checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

DILATIONS = (2, 3, 4)
VARIANCE_FLOOR = 1e-12


class Convolution(nn.Module):
    """A convolution with reflection padding that keeps the length, ``(B, C, T)`` → ``(B, C', T)``."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (self.padding, self.padding), mode="reflect"))
        return out


class Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


class Tdnn(nn.Module):
    """Convolution, ReLU and batch norm, in this order."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = Convolution(inputs, outputs, kernel, dilation)
        self.norm = Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(F.relu(self.conv(x)))
        return out


class Res2Net(nn.Module):
    """Hierarchical channel groups: each convolution adds the previous group's result; the first group is unchanged."""

    def __init__(self, channels: int, scale: int, kernel: int, dilation: int) -> None:
        super().__init__()
        group = channels // scale
        self.blocks = nn.ModuleList(Tdnn(group, group, kernel, dilation) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        first, *groups = x.chunk(len(self.blocks) + 1, dim=1)
        results = [first]
        for index, (block, group) in enumerate(zip(self.blocks, groups, strict=True)):
            results.append(block(group + results[-1] if index else group))
        return torch.cat(results, dim=1)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = Convolution(channels, inner)
        self.conv2 = Convolution(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.conv1(x.mean(dim=2, keepdim=True)))
        out: Tensor = self.conv2(gate).sigmoid() * x
        return out


class SERes2Net(nn.Module):
    def __init__(self, channels: int, scale: int, squeeze: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.tdnn1 = Tdnn(channels, channels)
        self.res2net_block = Res2Net(channels, scale, kernel, dilation)
        self.tdnn2 = Tdnn(channels, channels)
        self.se_block = SqueezeExcitation(channels, squeeze)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))
        return x + out


def weighted_statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over time of ``(B, C, T)``, each ``(B, C, 1)``; the weights sum to 1."""
    mean = (weights * x).sum(2, keepdim=True)
    variance = (weights * (x - mean).square()).sum(2, keepdim=True)
    return mean, variance.clamp(min=VARIANCE_FLOOR).sqrt()


class AttentiveStatistics(nn.Module):
    """``(B, C, T)`` → weighted means and standard deviations ``(B, 2 C, 1)``."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.tdnn = Tdnn(3 * channels, inner)
        self.conv = Convolution(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        uniform = torch.full_like(x[:1, :1], 1 / x.shape[2])
        mean, deviation = weighted_statistics(x, uniform)
        seen = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], dim=1)
        weights = self.conv(torch.tanh(self.tdnn(seen))).softmax(2)
        return torch.cat(weighted_statistics(x, weights), dim=1)


class SpeakerEncoder(nn.Module):
    """Log-mel ``(B, mels, T)`` → embedding ``(B, size)``."""

    def __init__(
        self, n_mels: int, channels: int, kernel: int, block_kernel: int, scale: int, squeeze: int,
        attention: int, pooled: int, size: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_mels = n_mels
        self.size = size
        self.blocks = nn.ModuleList([Tdnn(n_mels, channels, kernel)])
        self.blocks.extend(SERes2Net(channels, scale, squeeze, block_kernel, dilation) for dilation in DILATIONS)
        self.mfa = Tdnn(len(DILATIONS) * channels, pooled)
        self.asp = AttentiveStatistics(pooled, attention)
        self.asp_bn = Norm(2 * pooled)
        self.fc = Convolution(2 * pooled, size)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.blocks[0](mel)
        outputs = []
        for block in self.blocks[1:]:
            x = block(x)
            outputs.append(x)
        x = self.asp_bn(self.asp(self.mfa(torch.cat(outputs, dim=1))))  # (B, 2 pooled, 1)
        embedding: Tensor = self.fc(x)
        return embedding.squeeze(2)
