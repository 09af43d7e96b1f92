"""Flow matching: integrates from noise to mel in a few Euler steps.

The state is always in float32. The noise of a frame depends on the seed and the frame only, so that overlapping solves
of a stream agree.
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
"""The number of rows of recorded solves is a multiple of this, as efficient half-precision kernels require."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The flow's conditioning on a voice; float32, on the flow's device."""

    mel: Tensor
    """``(P, bands)``."""
    mu: Tensor
    """Conditions of the reference, ``(P, content width)``."""
    style: Tensor
    """``(style width,)``."""


class Noise:
    """Gaussian noise from a seed; the noise of a frame does not depend on the requested range."""

    def __init__(self, bands: int, seed: int) -> None:
        self._bands = bands
        self._generator = torch.Generator().manual_seed(seed)
        self._frames: list[Tensor] = []

    def __call__(self, first: int, end: int) -> Tensor:
        """Noise of the frames from ``first`` to ``end``: ``(end - first, bands)``, float32 on the CPU."""
        while len(self._frames) < end:
            self._frames.append(torch.randn(self._bands, generator=self._generator))
        return torch.stack(self._frames[first:end])


class Slots:
    """Static buffers for a solve with at most ``prompt`` reference frames and ``target`` target frames.

    A shorter reference is aligned to the end of its slots and a shorter target to the start of its slots. The unused
    slots are masked, so they do not affect the result.
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
        """Load conditions ``(n, content width)`` and noise ``(n, bands)`` of at most ``target`` frames."""
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
        """Advance the target by one step; the reference's part of the state stays zero."""
        cond, uncond = self._estimator(
            self.state.to(self._rows.dtype), self._rows, self.scale_shift, self._span
        ).float()
        self.state[self._start :].add_(self._step * ((1 + GUIDANCE) * cond - GUIDANCE * uncond))


class Flow:
    """Solves with an estimator; uses recorded shapes and, on CUDA, graphs after ``record``."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self._device = estimator.cond_projection.weight.device
        self._graphs = Graphs(self._device)
        self._recorded: list[Slots] = []
        self._scale_shifts: dict[int, Tensor] = {}

    def record(self, prompt: int, target: int) -> None:
        """Allocate slots for at most ``prompt`` and ``target`` frames and record a solve; does nothing if recorded."""
        target += -(prompt + target) % ALIGNMENT
        if (prompt, target) in self._graphs:  # a second graph would read other slots than those that ``solve`` fills
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
