"""Emotion vectors: interpolates them, and converts eight emotion weights to one vector.

``feat1`` contains speaker styles and ``feat2`` the emotion vectors of the same speakers. Their rows are grouped by
emotion, in the order of ``EMOTIONS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from streaming_server.domain import EMOTIONS, EmotionVector

BIAS = (0.9375, 0.875, 1.0, 1.0, 0.9375, 0.9375, 0.6875, 0.5625)
"""Factors that the official web page applies to the eight weights."""
CAP = 0.8
"""Maximum sum of the weights on the official web page; the voice's own emotion has the remaining weight."""

CALM = EMOTIONS.index("calm")


def merged(base: Tensor, reference: Tensor, weight: float) -> Tensor:
    """Interpolate between the voice's own emotion vector and that of another recording, each ``(width,)``."""
    return base + weight * (reference - base)


def weakened(vector: Sequence[float], weight: float) -> list[float]:
    """Scale the weights, truncated to four decimals as in the official implementation; unchanged at weight 1."""
    weight = min(max(weight, 0.0), 1.0)
    return list(vector) if weight == 1 else [int(value * weight * 10_000) / 10_000 for value in vector]


def capped(vector: Sequence[float]) -> list[float]:
    """Apply the official web page's factors to the weights and limit their sum to 0.8."""
    biased = [value * bias for value, bias in zip(vector, BIAS, strict=True)]
    total = sum(biased)
    return [value * CAP / total for value in biased] if total > CAP else biased


@dataclass(frozen=True, slots=True)
class EmotionMatrix:
    """Rows of ``feat1 (rows, style)`` and ``feat2 (rows, width)``, in groups of the given sizes."""

    styles: Tensor
    vectors: Tensor
    sizes: tuple[int, ...]

    def nearest(self, style: Tensor) -> Tensor:
        """For each emotion, the index in its group of the speaker most similar to ``style (192,)``: ``(8,)``."""
        groups = torch.split(self.styles, list(self.sizes))
        return torch.stack([F.cosine_similarity(style[None], group, dim=1).argmax() for group in groups])

    def drawn(self, generator: torch.Generator | None = None) -> Tensor:
        """For each emotion, a random index in its group ``(8,)``; the generator is on the CPU."""
        return torch.cat([torch.randint(size, (1,), generator=generator) for size in self.sizes])

    def vector(self, weights: Sequence[float], rows: Tensor, base: Tensor) -> Tensor:
        """The weighted sum of the selected rows and, with the remaining weight, the voice's own ``base (width,)``."""
        firsts = torch.tensor([0, *self.sizes[:-1]]).cumsum(0)
        chosen = self.vectors[(firsts + rows.cpu()).to(self.vectors.device)]  # (8, width)
        shares = torch.tensor(list(weights), dtype=base.dtype, device=base.device)
        return shares @ chosen.to(base) + (1 - shares.sum()) * base


def of_scores(scores: Sequence[float], swap: bool) -> EmotionVector:
    """Convert a classifier's scores for ``EMOTIONS`` to a vector, limited to 0 … 1; all zero means calm.

    The official implementation limits scores to 1.2; the domain allows at most 1. ``swap`` exchanges sad and
    melancholic, which the classifier confuses.
    """
    bounded = [min(max(score, 0.0), 1.0) for score in scores]
    if not any(bounded):
        bounded[CALM] = 1.0
    if swap:
        sad, melancholic = EMOTIONS.index("sad"), EMOTIONS.index("melancholic")
        bounded[sad], bounded[melancholic] = bounded[melancholic], bounded[sad]
    a, b, c, d, e, f, g, h = bounded
    return a, b, c, d, e, f, g, h
