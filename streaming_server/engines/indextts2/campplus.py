"""CAM++, the speaker verification network that computes the style vector of a voice (Wang et al., 2023).

A two-dimensional convolutional head is followed by densely connected time-delay layers, each gated by the mean of its
context. Attribute names are those of the checkpoint.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

HEAD_STRIDES = (2, 2)
"""Frequency strides of the two residual stages; the last convolution of the head also has stride 2."""
DILATIONS = (1, 2, 2)
"""Dilations of the dense blocks."""
CONTEXT_FRAMES = 100
"""Frames per segment; the gates use the mean of the segment and the mean of all frames."""


@dataclass(frozen=True, slots=True)
class StyleShape:
    """Sizes, from the shapes of the weights; the defaults are the published ones."""

    bands: int = 80
    head: int = 32
    first: int = 128
    first_kernel: int = 5
    growth: int = 32
    inner: int = 128
    kernel: int = 3
    squeezed: int = 64
    layers: tuple[int, ...] = (12, 24, 16)
    size: int = 192


class Residual(nn.Module):
    """Two 3×3 convolutions with a shortcut: ``(B, C, bands, T)`` → ``(B, C, bands / stride, T)``."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, (stride, 1), 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.extend([nn.Conv2d(channels, channels, 1, (stride, 1), bias=False), nn.BatchNorm2d(channels)])

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class Head(nn.Module):
    """Frames ``(B, bands, T)`` → ``(B, channels · bands / 8, T)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(Residual(channels, HEAD_STRIDES[0]), Residual(channels, 1))
        self.layer2 = nn.Sequential(Residual(channels, HEAD_STRIDES[1]), Residual(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, (2, 1), 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x[:, None])))  # (B, channels, bands, T)
        x = self.layer2(self.layer1(x))
        return F.relu(self.bn2(self.conv2(x))).flatten(1, 2)


class Norm(nn.Sequential):
    """Batch norm, by default followed by a ReLU."""

    def __init__(self, channels: int, relu: bool = True, affine: bool = True) -> None:
        super().__init__(OrderedDict(batchnorm=nn.BatchNorm1d(channels, affine=affine)))
        if relu:
            self.add_module("relu", nn.ReLU())


class Gated(nn.Module):
    """A convolution with channels gated by the means of all frames and of the segment (``cam_layer``)."""

    def __init__(self, shape: StyleShape, dilation: int) -> None:
        super().__init__()
        padding = dilation * (shape.kernel - 1) // 2
        self.linear_local = nn.Conv1d(
            shape.inner, shape.growth, shape.kernel, padding=padding, dilation=dilation, bias=False
        )
        self.linear1 = nn.Conv1d(shape.inner, shape.squeezed, 1)
        self.linear2 = nn.Conv1d(shape.squeezed, shape.growth, 1)

    def forward(self, x: Tensor) -> Tensor:
        segments = F.avg_pool1d(x, CONTEXT_FRAMES, CONTEXT_FRAMES, ceil_mode=True)  # (B, inner, segments)
        around = segments.repeat_interleave(CONTEXT_FRAMES, dim=-1)[..., : x.shape[-1]]
        gate = self.linear2(F.relu(self.linear1(x.mean(-1, keepdim=True) + around))).sigmoid()
        out: Tensor = self.linear_local(x) * gate
        return out


class DenseLayer(nn.Module):
    def __init__(self, channels: int, shape: StyleShape, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = Norm(channels)
        self.linear1 = nn.Conv1d(channels, shape.inner, 1, bias=False)
        self.nonlinear2 = Norm(shape.inner)
        self.cam_layer = Gated(shape, dilation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))
        return torch.cat([x, out], dim=1)


class Dense(nn.Sequential):
    """Layers that each append ``growth`` channels to their input."""

    def __init__(self, channels: int, layers: int, shape: StyleShape, dilation: int) -> None:
        super().__init__(
            OrderedDict(
                (f"tdnnd{index + 1}", DenseLayer(channels + index * shape.growth, shape, dilation))
                for index in range(layers)
            )
        )


class Transit(nn.Module):
    """Halves the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nonlinear = Norm(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.nonlinear(x))
        return out


class Layer(nn.Module):
    """A convolution without bias, followed by a norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.linear = nn.Conv1d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
        self.nonlinear = norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.nonlinear(self.linear(x))
        return out


class Statistics(nn.Module):
    """Mean and unbiased standard deviation over time: ``(B, C, T)`` → ``(B, 2 C, 1)``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(-1), x.std(-1)], dim=-1)[..., None]


class CampPlus(nn.Module):
    """Frames ``(B, T, bands)`` → styles ``(B, size)``."""

    def __init__(self, shape: StyleShape) -> None:
        super().__init__()
        self.head = Head(shape.head)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["tdnn"] = Layer(
            shape.head * (shape.bands // 8), shape.first, shape.first_kernel, stride=2, norm=Norm(shape.first)
        )
        channels = shape.first
        for index, (count, dilation) in enumerate(zip(shape.layers, DILATIONS, strict=True), 1):
            layers[f"block{index}"] = Dense(channels, count, shape, dilation)
            channels += count * shape.growth
            layers[f"transit{index}"] = Transit(channels)
            channels //= 2
        layers["out_nonlinear"] = Norm(channels)
        layers["stats"] = Statistics()
        layers["dense"] = Layer(2 * channels, shape.size, 1, stride=1, norm=Norm(shape.size, relu=False, affine=False))
        self.xvector = nn.Sequential(layers)

    def forward(self, frames: Tensor) -> Tensor:
        out: Tensor = self.xvector(self.head(frames.mT))
        return out[..., 0]
