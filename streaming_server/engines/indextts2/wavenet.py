"""The WaveNet that ends the flow's network: gated convolutions with reflected edges, coloured by the time of the step.

Attribute names are the checkpoint's, weight norm already folded. This module does not know attention, mel or solvers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def nested(convolution: nn.Conv1d) -> nn.ModuleDict:
    """By the checkpoint's path to a convolution."""
    return nn.ModuleDict({"conv": nn.ModuleDict({"conv": convolution})})


def convolution_of(module: nn.Module) -> nn.Conv1d:
    inner = module.get_submodule("conv.conv")
    assert isinstance(inner, nn.Conv1d)
    return inner


class WaveNet(nn.Module):
    """``(B, width, T)`` → the same. Layer ``i`` is dilated by ``dilation ** i``."""

    def __init__(self, width: int, time_width: int, kernel: int, dilation: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.in_layers = nn.ModuleList(
            nested(nn.Conv1d(width, 2 * width, kernel, dilation=dilation**layer)) for layer in range(layers)
        )
        self.res_skip_layers = nn.ModuleList(
            nested(nn.Conv1d(width, (2 if layer + 1 < layers else 1) * width, 1)) for layer in range(layers)
        )
        self.cond_layer = nested(nn.Conv1d(time_width, 2 * width * layers, 1))
        self.margins: list[int] = [(kernel - 1) * dilation**layer for layer in range(layers)]
        """Frames that each layer needs beyond its output, both sides together; the left one gets the odd one."""

    @property
    def reach(self) -> int:
        """Frames to the left that a frame depends on."""
        return sum(margin - margin // 2 for margin in self.margins)

    @property
    def widest(self) -> int:
        """The most frames by which a layer looks beyond its input's edge."""
        return max(margin - margin // 2 for margin in self.margins)

    def colours(self, time: Tensor) -> Tensor:
        """Embeddings of times ``(S, time width)`` → what each layer's gates get, ``(S, layers · 2 · width)``."""
        layer = convolution_of(self.cond_layer)
        return F.linear(time, layer.weight[..., 0], layer.bias)

    def forward(self, x: Tensor, colours: Tensor, edges: Tensor) -> Tensor:
        """
        Args:
            x: ``(B, width, T)``.
            colours: ``(layers, 2 · width)``, from ``colours``.
            edges: ``(widest + T + widest,)``, the frame that stands for each one, so also for those beyond the edges.
        """
        total: Tensor | None = None
        for inner, outer, margin, colour in zip(
            self.in_layers, self.res_skip_layers, self.margins, colours, strict=True
        ):
            left, right = self.widest - (margin - margin // 2), len(edges) - self.widest + margin // 2
            gates = convolution_of(inner)(x.index_select(2, edges[left:right])) + colour[:, None]  # (B, 2 width, T)
            result = convolution_of(outer)(torch.tanh(gates[:, : self.width]) * gates[:, self.width :].sigmoid())
            skipped = result[:, -self.width :]
            total = skipped if total is None else total + skipped
            if result.shape[1] > self.width:
                x = x + result[:, : self.width]
        assert total is not None
        return total


def mirrored(length: int, first: int, end: int, margin: int) -> Tensor:
    """Which of ``length`` frames stands for each of those from ``-margin`` to ``length + margin``.

    Frames from ``first`` to ``end`` stand for themselves, those beyond for their reflection at the edge.
    """
    frame = torch.arange(-margin, length + margin)
    frame = torch.where(frame < first, 2 * first - frame, frame)
    frame = torch.where(frame >= end, 2 * (end - 1) - frame, frame)
    return frame.clamp(first, end - 1)
