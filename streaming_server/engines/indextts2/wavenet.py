"""The final WaveNet of the flow's network: gated convolutions with reflected edges, conditioned on the time.

Attribute names are those of the checkpoint, after folding weight norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def nested(convolution: nn.Conv1d) -> nn.ModuleDict:
    """Wrap a convolution in the checkpoint's key path."""
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
        """Context frames of each layer, both sides together; the left side has the odd frame."""

    @property
    def reach(self) -> int:
        """Number of frames to the left that a frame depends on."""
        return sum(margin - margin // 2 for margin in self.margins)

    @property
    def widest(self) -> int:
        """Maximum number of frames that a layer reads beyond the edge of its input."""
        return max(margin - margin // 2 for margin in self.margins)

    def scale_shift(self, time: Tensor) -> Tensor:
        """Embeddings of times ``(S, time width)`` → bias of all layers' gates, ``(S, layers · 2 · width)``."""
        layer = convolution_of(self.cond_layer)
        return F.linear(time, layer.weight[..., 0], layer.bias)

    def forward(self, x: Tensor, scale_shift: Tensor, edges: Tensor) -> Tensor:
        """
        Args:
            x: ``(B, width, T)``.
            scale_shift: ``(B or 1, layers, 2 · width)``, from ``scale_shift``.
            edges: ``(B or 1, widest + T + widest)``, the source frame of each position, including those beyond the
                edges.
        """
        total: Tensor | None = None
        for inner, outer, margin, colour in zip(
            self.in_layers, self.res_skip_layers, self.margins, scale_shift.unbind(1), strict=True
        ):
            left, right = self.widest - (margin - margin // 2), edges.shape[1] - self.widest + margin // 2
            gates = convolution_of(inner)(reflected(x, edges[:, left:right])) + colour[..., None]  # (B, 2 width, T)
            result = convolution_of(outer)(torch.tanh(gates[:, : self.width]) * gates[:, self.width :].sigmoid())
            skipped = result[:, -self.width :]
            total = skipped if total is None else total + skipped
            if result.shape[1] > self.width:
                x = x + result[:, : self.width]
        assert total is not None
        return total


def reflected(x: Tensor, edges: Tensor) -> Tensor:
    """The frames ``edges``, ``(B or 1, n)``, of ``(B, width, T)``."""
    if len(edges) == 1:
        return x.index_select(2, edges[0])
    return x.gather(2, edges[:, None].expand(-1, x.shape[1], -1))


def mirrored(length: int, first: int, end: int, margin: int) -> Tensor:
    """Source frames of the positions from ``-margin`` to ``length + margin``.

    Positions from ``first`` to ``end`` map to themselves; positions beyond are reflected at the edge.
    """
    frame = torch.arange(-margin, length + margin)
    frame = torch.where(frame < first, 2 * first - frame, frame)
    frame = torch.where(frame >= end, 2 * (end - 1) - frame, frame)
    return frame.clamp(first, end - 1)
