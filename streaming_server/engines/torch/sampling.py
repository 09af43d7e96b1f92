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


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters; ``do_sample=False`` selects the most probable code after the penalty."""

    do_sample: bool = True
    top_p: float = 0.8
    top_k: int = 30
    """0 disables the limit."""
    temperature: float = 1.0
    repetition_penalty: float = 10.0


class Warp:
    """The parameters of a ``Sampling`` as 0-d tensors on the device; a recorded graph reads their current values."""

    def __init__(self, device: torch.device) -> None:
        self._do_sample = torch.zeros((), dtype=torch.bool, device=device)
        self._top_k = torch.zeros((), dtype=torch.long, device=device)
        self._top_p = torch.zeros((), device=device)
        self._temperature = torch.ones((), device=device)
        self._penalty = torch.ones((), device=device)

    def set(self, sampling: Sampling) -> None:
        self._do_sample.fill_(sampling.do_sample)
        # Values beyond these bounds have no further effect and could overflow in half precision.
        self._top_k.fill_(min(sampling.top_k, MAX_TOP_K))
        self._top_p.fill_(sampling.top_p)
        self._temperature.fill_(min(max(sampling.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE))
        self._penalty.fill_(min(max(sampling.repetition_penalty, 1 / MAX_PENALTY), MAX_PENALTY))

    def penalise(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Apply the repetition penalty to the ids that were ``seen``; both ``(B, V)``."""
        return torch.where(seen, torch.where(logits < 0, logits * self._penalty, logits / self._penalty), logits)

    def truncate(self, logits: Tensor) -> Tensor:
        """Apply the temperature and set logits outside top-k and top-p to -inf: ``(B, V)`` → ``(B, V)``."""
        logits = logits / self._temperature
        ranked = logits.sort(dim=-1, descending=True).values
        last = torch.where(self._top_k > 0, self._top_k, logits.shape[-1]).clamp(max=logits.shape[-1]) - 1
        threshold = ranked.index_select(-1, last.view(1))  # (B, 1): the k-th largest
        ranked = ranked.masked_fill(ranked < threshold, -torch.inf)
        p = ranked.softmax(-1)
        dropped = p.cumsum(-1) - p >= self._top_p
        dropped[:, 0].fill_(False)  # at least one id remains
        threshold = ranked.masked_fill(dropped, torch.inf).amin(-1, keepdim=True)
        return logits.masked_fill(logits < threshold, -torch.inf)

    def draw(self, logits: Tensor, seen: Tensor, noise: Tensor) -> Tensor:
        """Sample one id per row, ``(B,)``.

        The argmax of probability divided by exponential noise is a sample of the distribution. ``torch.multinomial``
        uses the same method, so the same generator state gives the same ids.
        """
        logits = self.penalise(logits, seen)
        drawn = (self.truncate(logits).softmax(-1) / noise).argmax(-1)
        return torch.where(self._do_sample, drawn, logits.argmax(-1))
