"""Flow matching: noise → mel, in a few steps along the directions that the network gives.

The state stays in float32 whatever the network computes in. Noise belongs to the frame, not to the call, so that
neighbouring solves of a stream agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from streaming_server.engines.indextts2.dit import Estimator, Span, rotations
from streaming_server.engines.indextts2.wavenet import mirrored
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.graphs import Graphs

GUIDANCE = 0.7
"""Classifier-free guidance scale."""

ALIGNMENT = 8
"""Rows of recorded solves come in multiples of it: what the kernels of half precision are made for."""


@dataclass(frozen=True, slots=True)
class Reference:
    """How a voice sounds, as the flow wants to know it; on the flow's device, float32."""

    mel: Tensor
    """``(P, bands)``."""
    mu: Tensor
    """Its own conditions, ``(P, content width)``."""
    style: Tensor
    """``(style width,)``."""


class Noise:
    """Normal noise frame by frame from a seed: a frame's is the same however many are drawn at once."""

    def __init__(self, bands: int, seed: int) -> None:
        self._bands = bands
        self._generator = torch.Generator().manual_seed(seed)
        self._frames: list[Tensor] = []

    def __call__(self, first: int, end: int) -> Tensor:
        """Of the frames from ``first`` to ``end``: ``(end - first, bands)``, float32 on the CPU."""
        while len(self._frames) < end:
            self._frames.append(torch.randn(self._bands, generator=self._generator))
        return torch.stack(self._frames[first:end])


class Slots:
    """Buffers for a solve of at most so many frames of reference and of target.

    A shorter reference stands at the end of its slots and a shorter target at the beginning of its own; what is around
    them is seen by nobody, so the result is that of a solve without it.
    """

    def __init__(self, estimator: Estimator, prompt: int, target: int) -> None:
        self._estimator = estimator
        self.prompt, self.target = prompt, target
        shape, weight = estimator.shape, estimator.cond_projection.weight
        rows, self._start = prompt + target, max(0, prompt - estimator.wavenet.reach)
        kept, margin = rows - self._start, estimator.wavenet.widest
        self.state = torch.zeros(rows, shape.bands, device=weight.device)
        self.scale_shift = weight.new_zeros(estimator.scale_shift_width)
        self._rows = weight.new_zeros(2, rows, shape.width)
        self._step = torch.zeros(kept, 1, device=weight.device)
        self._span = Span(
            rotation=rotations(rows, shape.width // shape.heads).to(weight.device),
            seen=torch.ones(rows, dtype=torch.bool, device=weight.device),
            edges=mirrored(kept, 0, kept, margin).to(weight.device),
            start=self._start,
        )

    def fill(self, reference: Reference, mu: Tensor, noise: Tensor, steps: int) -> None:
        """Conditions ``(n, content width)`` and noise ``(n, bands)``, at most as many frames as there are slots."""
        shape, weight = self._estimator.shape, self._estimator.cond_projection.weight
        rows = self.prompt + self.target
        first, end = self.prompt - reference.mel.shape[0], self.prompt + mu.shape[0]
        given = weight.new_zeros(2, rows, shape.bands + shape.content_width)  # the second row is unconditional
        given[0, first : self.prompt] = torch.cat([reference.mel, reference.mu], dim=1).to(weight.dtype)
        given[0, self.prompt : end, shape.bands :] = mu.to(weight.dtype)
        style = weight.new_zeros(2, shape.style_width)
        style[0] = reference.style
        self._rows.copy_(self._estimator.rows(given[..., : shape.bands], given[..., shape.bands :], style))
        self.state.zero_()
        self.state[self.prompt : end] = noise.to(self.state)
        self._step.zero_()
        self._step[self.prompt - self._start : end - self._start] = 1 / steps
        self._span.seen.zero_()
        self._span.seen[first:end] = True
        margin = self._estimator.wavenet.widest
        real = max(first, self._start) - self._start, end - self._start
        self._span.edges.copy_(mirrored(rows - self._start, *real, margin))

    def step(self) -> None:
        """Move the target one step; the reference's part of the state stays zero."""
        cond, uncond = self._estimator(
            self.state.to(self._rows.dtype), self._rows, self.scale_shift, self._span
        ).float()
        self.state[self._start :].add_(self._step * ((1 + GUIDANCE) * cond - GUIDANCE * uncond))


class Flow:
    """Solves with an estimator; where ``record`` was called, in fixed shapes and on CUDA as graphs."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self._device = estimator.cond_projection.weight.device
        self._graphs = Graphs(self._device)
        self._recorded: list[Slots] = []
        self._scale_shifts: dict[int, Tensor] = {}

    def record(self, prompt: int, target: int) -> None:
        """Keep slots for a reference and a target of at most so many frames; once is enough."""
        target += -(prompt + target) % ALIGNMENT
        if (prompt, target) in self._graphs:  # a second graph would read other slots than those that a solve fills
            return
        slots = Slots(self._estimator, prompt, target)
        self._recorded.append(slots)
        self._recorded.sort(key=lambda slots: slots.prompt + slots.target)
        self._graphs.record((slots.prompt, slots.target), slots.step)

    def solve(
        self, reference: Reference, mu: Tensor, noise: Tensor, steps: int, check: Check = never_cancelled
    ) -> Tensor:
        """Conditions ``(n, content width)`` and noise ``(n, bands)`` → mel ``(n, bands)``, float32."""
        prompt, target = reference.mel.shape[0], mu.shape[0]
        slots = next((slots for slots in self._recorded if slots.prompt >= prompt and slots.target >= target), None)
        if slots is None:
            slots = Slots(self._estimator, prompt, target)
        slots.fill(reference, mu, noise, steps)
        for scale_shift in self._times(steps):
            check()
            slots.scale_shift.copy_(scale_shift)
            self._graphs.run((slots.prompt, slots.target), slots.step)
        return slots.state[slots.prompt : slots.prompt + target].clone()

    def _times(self, steps: int) -> Tensor:
        """Scale and shift of each step, ``(steps, scale_shift_width)``."""
        if steps not in self._scale_shifts:
            self._scale_shifts[steps] = self._estimator.scale_shift(torch.arange(steps, device=self._device) / steps)
        return self._scale_shifts[steps]
