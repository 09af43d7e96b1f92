"""From logits to the next code: penalty, temperature, top-k, top-p, and a draw whose chance comes from outside.

Everything is tensor arithmetic of fixed shapes, so that a recorded CUDA graph serves every request. This module does
not know the model, its cache or its vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HOTTEST = 1e4
STRONGEST_PENALTY = 1e4
LARGEST_TOP_K = 2**31 - 1
COLDEST = 1e-4
"""A temperature of 0 means the likeliest code, not a division by zero."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How codes are drawn; ``do_sample=False`` takes the likeliest one after the penalty."""

    do_sample: bool = True
    top_p: float = 0.8
    top_k: int = 30
    """0 keeps every code."""
    temperature: float = 1.0
    repetition_penalty: float = 10.0


class Warp:
    """The parameters of a ``Sampling`` as 0-d tensors on the device, so that they can change under a recorded graph."""

    def __init__(self, device: torch.device) -> None:
        self._do_sample = torch.zeros((), dtype=torch.bool, device=device)
        self._top_k = torch.zeros((), dtype=torch.long, device=device)
        self._top_p = torch.zeros((), device=device)
        self._temperature = torch.ones((), device=device)
        self._penalty = torch.ones((), device=device)

    def set(self, sampling: Sampling) -> None:
        self._do_sample.fill_(sampling.do_sample)
        # Beyond these bounds nothing changes any more, and the numbers would leave what half precision holds.
        self._top_k.fill_(min(sampling.top_k, LARGEST_TOP_K))
        self._top_p.fill_(sampling.top_p)
        self._temperature.fill_(min(max(sampling.temperature, COLDEST), HOTTEST))
        self._penalty.fill_(min(max(sampling.repetition_penalty, 1 / STRONGEST_PENALTY), STRONGEST_PENALTY))

    def penalise(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Push down the ids that were ``seen``; both ``(B, V)``."""
        return torch.where(seen, torch.where(logits < 0, logits * self._penalty, logits / self._penalty), logits)

    def truncate(self, logits: Tensor) -> Tensor:
        """Temperature, then -inf for what top-k and top-p leave out: ``(B, V)`` → ``(B, V)``."""
        logits = logits / self._temperature
        ranked = logits.sort(dim=-1, descending=True).values
        last = torch.where(self._top_k > 0, self._top_k, logits.shape[-1]).clamp(max=logits.shape[-1]) - 1
        least = ranked.index_select(-1, last.view(1))  # (B, 1): the k-th largest
        ranked = ranked.masked_fill(ranked < least, -torch.inf)
        p = ranked.softmax(-1)
        dropped = p.cumsum(-1) - p >= self._top_p
        dropped[:, 0].fill_(False)  # always one left
        least = ranked.masked_fill(dropped, torch.inf).amin(-1, keepdim=True)
        return logits.masked_fill(logits < least, -torch.inf)

    def draw(self, logits: Tensor, seen: Tensor, noise: Tensor) -> Tensor:
        """One id a row, ``(B,)``.

        The largest probability over exponential noise is a draw from the distribution: the way ``torch.multinomial``
        goes, so that the same generator gives the same ids.
        """
        logits = self.penalise(logits, seen)
        drawn = (self.truncate(logits).softmax(-1) / noise).argmax(-1)
        return torch.where(self._do_sample, drawn, logits.argmax(-1))
