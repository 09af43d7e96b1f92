"""The arithmetic of emotions: vectors merged, eight numbers turned into one vector of the model's.

``feat1`` holds the styles of speakers, ``feat2`` their emotion vectors, row for row, in one group an emotion in the
order of the domain's ``EMOTIONS``. This module does not know recordings, descriptions, requests or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from streaming_server.domain import EMOTIONS, EmotionVector

BIAS = (0.9375, 0.875, 1.0, 1.0, 0.9375, 0.9375, 0.6875, 0.5625)
"""What the public web page multiplies the eight numbers with."""
CAP = 0.8
"""What it lets them add up to at most: the rest stays the voice's own."""

CALM = EMOTIONS.index("calm")


def merged(base: Tensor, reference: Tensor, weight: float) -> Tensor:
    """The voice's own emotion vector and that of another recording, each ``(width,)``."""
    return base + weight * (reference - base)


def weakened(vector: Sequence[float], weight: float) -> list[float]:
    """The numbers times the weight, to four places as in the public program; untouched at full weight."""
    weight = min(max(weight, 0.0), 1.0)
    return list(vector) if weight == 1 else [int(value * weight * 10_000) / 10_000 for value in vector]


def capped(vector: Sequence[float]) -> list[float]:
    """The numbers as the public web page changes them before they reach the model: biased, their sum at most 0.8."""
    biased = [value * bias for value, bias in zip(vector, BIAS, strict=True)]
    total = sum(biased)
    return [value * CAP / total for value in biased] if total > CAP else biased


@dataclass(frozen=True, slots=True)
class EmotionMatrix:
    """Rows of ``feat1 (rows, style)`` and ``feat2 (rows, width)``, in groups of these sizes."""

    styles: Tensor
    vectors: Tensor
    sizes: tuple[int, ...]

    def nearest(self, style: Tensor) -> Tensor:
        """For each emotion the row whose speaker is most like ``style (192,)``, counted inside its group ``(8,)``."""
        groups = torch.split(self.styles, list(self.sizes))
        return torch.stack([F.cosine_similarity(style[None], group, dim=1).argmax() for group in groups])

    def drawn(self, generator: torch.Generator | None = None) -> Tensor:
        """For each emotion any of its rows ``(8,)``; the generator is one of the CPU."""
        return torch.cat([torch.randint(size, (1,), generator=generator) for size in self.sizes])

    def vector(self, weights: Sequence[float], rows: Tensor, base: Tensor) -> Tensor:
        """The weighted sum of the emotions' rows; what the weights leave of 1 is the voice's own ``base (width,)``."""
        firsts = torch.tensor([0, *self.sizes[:-1]]).cumsum(0)
        chosen = self.vectors[(firsts + rows.cpu()).to(self.vectors.device)]  # (8, width)
        shares = torch.tensor(list(weights), dtype=base.dtype, device=base.device)
        return shares @ chosen.to(base) + (1 - shares.sum()) * base


def of_scores(scores: Sequence[float], swap: bool) -> EmotionVector:
    """What a classifier gave for each of ``EMOTIONS``, as a vector: bounded, and all zero is calm.

    The public program bounds to 1.2, the domain's numbers end at 1. ``swap`` takes sad for melancholic and melancholic
    for sad, which the classifier confuses.
    """
    bounded = [min(max(score, 0.0), 1.0) for score in scores]
    if not any(bounded):
        bounded[CALM] = 1.0
    if swap:
        sad, melancholic = EMOTIONS.index("sad"), EMOTIONS.index("melancholic")
        bounded[sad], bounded[melancholic] = bounded[melancholic], bounded[sad]
    a, b, c, d, e, f, g, h = bounded
    return a, b, c, d, e, f, g, h
