"""Sampling of the next code: repetition penalty, temperature, top-k, top-p, and a draw with the caller's noise.

All operations have fixed shapes, so that one recorded CUDA graph serves every request.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_TEMPERATURE = 1e4
MAX_PENALTY = 1e4
MAX_TOP_K = 2**31 - 1
MIN_TEMPERATURE = 1e-4
"""Lower temperatures are raised to this value; it selects the most probable code without a division by zero."""
RANKED = 128
"""Number of logits that are ranked where no row allows more: a selection of the largest is cheaper than a full sort."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters; ``do_sample=False`` selects the most probable code after the penalty."""

    do_sample: bool = True
    top_p: float = 0.8
    top_k: int = 30
    """0 disables the limit."""
    temperature: float = 1.0
    repetition_penalty: float = 10.0

    @property
    def ranks_few(self) -> bool:
        """Whether the ``RANKED`` largest logits decide the draw."""
        return not self.do_sample or 0 < self.top_k <= RANKED


class Warp:
    """The parameters of one ``Sampling`` per row as tensors ``(rows, 1)``; a recorded graph reads their current values.

    With one row, the parameters apply to logits of any number of rows.
    """

    def __init__(self, device: torch.device, rows: int = 1) -> None:
        self._do_sample = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self._top_k = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._top_p = torch.zeros(rows, 1, device=device)
        self._temperature = torch.ones(rows, 1, device=device)
        self._penalty = torch.ones(rows, 1, device=device)
        self._ranks_few = torch.zeros(rows, 1, dtype=torch.bool, device=device)

    def set(self, sampling: Sampling, rows: slice = slice(None)) -> None:
        self._do_sample[rows].fill_(sampling.do_sample)
        self._ranks_few[rows].fill_(sampling.ranks_few)
        # Values beyond these bounds have no further effect and could overflow in half precision.
        self._top_k[rows].fill_(min(sampling.top_k, MAX_TOP_K))
        self._top_p[rows].fill_(sampling.top_p)
        self._temperature[rows].fill_(min(max(sampling.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE))
        self._penalty[rows].fill_(min(max(sampling.repetition_penalty, 1 / MAX_PENALTY), MAX_PENALTY))

    def penalise(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Apply the repetition penalty to the ids that were ``seen``; both ``(B, V)``."""
        penalty = self._penalty[: logits.shape[0]]
        return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)

    def truncate(self, logits: Tensor, ranked: int | None = None) -> Tensor:
        """Apply the temperature and set logits outside top-k and top-p to -inf: ``(B, V)`` → ``(B, V)``.

        Args:
            logits: The logits.
            ranked: How many of the largest logits are ranked; at least the top-k of every row. None ranks all.
        """
        rows, size = logits.shape
        logits = logits / self._temperature[:rows]
        threshold = self._threshold(logits.topk(min(ranked or RANKED, size)).values)
        if ranked is None:
            # Longer rows may round differently; a row that needs no more gets what it gets alone.
            of_all = self._threshold(logits.sort(descending=True).values)
            threshold = torch.where(self._ranks_few[:rows], threshold, of_all)
        return logits.masked_fill(logits < threshold, -torch.inf)

    def _threshold(self, largest: Tensor) -> Tensor:
        """The smallest logit within top-k and top-p, ``(B, 1)``, of the largest ones in descending order."""
        rows, size = largest.shape
        top_k = self._top_k[:rows]
        last = torch.where(top_k > 0, top_k, size).clamp(max=size) - 1
        smallest = largest.gather(-1, last.expand(rows, 1))  # (B, 1): the k-th largest
        largest = largest.masked_fill(largest < smallest, -torch.inf)
        p = largest.softmax(-1)
        dropped = p.cumsum(-1) - p >= self._top_p[:rows]
        dropped[:, 0].fill_(False)  # at least one id remains
        return largest.masked_fill(dropped, torch.inf).amin(-1, keepdim=True)

    def draw(self, logits: Tensor, seen: Tensor, noise: Tensor, ranked: int | None = None) -> Tensor:
        """Sample one id per row, ``(B,)``; ``ranked`` as for `truncate`.

        The argmax of probability divided by exponential noise is a sample of the distribution. ``torch.multinomial``
        uses the same method, so the same generator state gives the same ids.
        """
        logits = self.penalise(logits, seen)
        drawn = (self.truncate(logits, ranked).softmax(-1) / noise).argmax(-1)
        return torch.where(self._do_sample[: logits.shape[0], 0], drawn, logits.argmax(-1))
