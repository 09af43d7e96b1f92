"""Flow matching: integrates from noise to mel in a few Euler steps.

The state is always in float32. The noise of a frame depends on the seed and the frame only, so that overlapping solves
of a stream agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from streaming_server.engines.indextts2.dit import Estimator, Span, attention_bias, rotations
from streaming_server.engines.indextts2.wavenet import mirrored
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.graphs import Graphs
from streaming_server.engines.torch.pieces import Job, Piece, batch_size, batch_sizes

GUIDANCE = 0.7
"""Classifier-free guidance scale."""

MAX_BATCH = 8
"""Maximum number of solves that run as one batch."""
MAX_BATCH_FRAMES = 4000
"""Maximum number of frames, those of references included, of a batch of several solves. A few such solves keep a GPU
busy, and more of them take proportionally longer."""

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


@dataclass(slots=True, eq=False)
class Solve:
    """A solve in progress."""

    state: Tensor
    """The noisy mel, ``(T, bands)``, while the solve holds no slot; the reference's part stays zero."""
    constants: tuple[Tensor, ...]
    """What is written to the slot and stays the same: as in ``Slots.constants``."""
    scale_shift: Tensor
    """Scales and shifts of the next step, ``(scale_shift_width,)``."""


class Slots:
    """Static buffers for solves with at most ``prompt`` reference frames and ``target`` target frames.

    A shorter reference is aligned to the end of its frames and a shorter target to the start of its frames. The unused
    frames are masked, so they do not affect the result. Up to ``capacity`` solves advance together, each at a time of
    its own, and others may take their slots between two steps.
    """

    def __init__(self, estimator: Estimator, prompt: int, target: int, capacity: int = 1) -> None:
        self._estimator = estimator
        self.prompt, self.target, self.capacity = prompt, target, capacity
        shape, weight = estimator.shape, estimator.cond_projection.weight
        length, self._start = prompt + target, max(0, prompt - estimator.wavenet.reach)
        kept, margin = length - self._start, estimator.wavenet.widest
        device = weight.device
        self._state = torch.zeros(capacity, length, shape.bands, device=device)
        self._scale_shift = weight.new_zeros(capacity, estimator.scale_shift_width)
        self._rows = weight.new_zeros(capacity, 2, length, shape.width)
        self._step = torch.zeros(capacity, kept, 1, device=device)
        seen = torch.ones(capacity, length, dtype=torch.bool, device=device)
        self._bias = attention_bias(seen, weight.dtype)
        self._edges = mirrored(kept, 0, kept, margin).repeat(capacity, 1).to(device)
        self.constants = self._rows, self._step, self._bias, self._edges
        self._rotation = rotations(length, shape.width // shape.heads).to(device)
        self._held: list[Solve | None] = [None] * capacity

    def begin(self, reference: Reference, mu: Tensor, noise: Tensor, steps: int) -> Solve:
        """Prepare a solve for conditions ``(n, content width)`` and noise ``(n, bands)`` of at most ``target`` frames.

        It holds no slot before `hold`.
        """
        shape, weight = self._estimator.shape, self._estimator.cond_projection.weight
        length, start = self.prompt + self.target, self._start
        first, end = self.prompt - reference.mel.shape[0], self.prompt + mu.shape[0]
        given = weight.new_zeros(2, length, shape.bands + shape.content_width)  # the second item is unconditional
        given[0, first : self.prompt] = torch.cat([reference.mel, reference.mu], dim=1).to(weight.dtype)
        given[0, self.prompt : end, shape.bands :] = mu.to(weight.dtype)
        style = weight.new_zeros(2, shape.style_width)
        style[0] = reference.style
        rows = self._estimator.rows(given[..., : shape.bands], given[..., shape.bands :], style)
        state, step = (torch.zeros_like(buffer[0]) for buffer in (self._state, self._step))
        seen = torch.zeros(length, dtype=torch.bool, device=weight.device)
        state[self.prompt : end] = noise.to(state)
        step[self.prompt - start : end - start] = 1 / steps
        seen[first:end] = True
        margin = self._estimator.wavenet.widest
        edges = mirrored(length - start, max(first, start) - start, end - start, margin)
        return Solve(state, (rows, step, attention_bias(seen, weight.dtype), edges), self._scale_shift[0])

    def hold(self, solves: Sequence[Solve]) -> int:
        """Give slots to these solves only, among the first ones; return their number, which a graph is recorded for."""
        size = batch_size(len(solves))
        for index, held in enumerate(self._held):
            if held is not None and (held in solves) != (index < size):
                held.state = self._state[index].clone()
                self._held[index] = None
        for solve in solves:
            if solve not in self._held:
                index = self._held.index(None)
                self._held[index] = solve
                self._state[index] = solve.state
                for buffer, value in zip(self.constants, solve.constants, strict=True):
                    buffer[index] = value
        times = [(held or solves[0]).scale_shift for held in self._held[:size]]
        torch.stack(times, out=self._scale_shift[:size])
        return size

    def end(self, solve: Solve) -> Tensor:
        """Free the solve's slot; return its state ``(target, bands)``."""
        if solve in self._held:
            index = self._held.index(solve)
            self._held[index] = None
            solve.state = self._state[index].clone()
        return solve.state[self.prompt :]

    def step(self, size: int = 1) -> None:
        """Advance the first ``size`` slots by one step."""
        span = Span(self._rotation, self._bias[:size], self._edges[:size], self._start)
        rows, state = self._rows[:size], self._state[:size]
        cond, uncond = self._estimator(state.to(rows.dtype), rows, self._scale_shift[:size], span).float().unbind(1)
        state[:, self._start :].add_(self._step[:size] * ((1 + GUIDANCE) * cond - GUIDANCE * uncond))


class Flow:
    """Solves with an estimator; uses recorded shapes and, on CUDA, graphs after ``record``."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self._device = estimator.cond_projection.weight.device
        self._graphs = Graphs(self._device)
        self._recorded: list[Slots] = []
        self._scale_shifts: dict[int, Tensor] = {}

    def record(self, prompt: int, target: int, requests: int = 1) -> None:
        """Allocate slots for at most ``prompt`` and ``target`` frames and record a step; does nothing if recorded.

        Args:
            prompt: Frames of the reference.
            target: Frames that are solved.
            requests: Maximum number of requests whose solves run as one batch.
        """
        target += -(prompt + target) % ALIGNMENT
        if (prompt, target, 1) in self._graphs:  # a second graph would read other slots than those of ``solve``
            return
        sizes = batch_sizes(min(requests, MAX_BATCH, max(1, MAX_BATCH_FRAMES // (prompt + target))))
        slots = Slots(self._estimator, prompt, target, sizes[-1])
        self._recorded.append(slots)
        self._recorded.sort(key=lambda slots: slots.prompt + slots.target)
        for size in sizes:
            self._graphs.record((prompt, target, size), partial(slots.step, size))

    def solve(
        self, reference: Reference, mu: Tensor, noise: Tensor, steps: int, check: Check = never_cancelled
    ) -> Job[Tensor]:
        """Conditions ``(n, content width)`` and noise ``(n, bands)`` → mel ``(n, bands)``, float32.

        Each piece is one step. Solves of the same recorded shape run as one batch, wherever each of them is.
        """
        prompt, target = reference.mel.shape[0], mu.shape[0]
        slots = next((slots for slots in self._recorded if slots.prompt >= prompt and slots.target >= target), None)
        if slots is None:
            slots = Slots(self._estimator, prompt, target)
        solve = slots.begin(reference, mu, noise, steps)
        piece = Piece(("solve", slots), solve, partial(self._advance, slots), slots.capacity)
        try:
            for scale_shift in self._times(steps):
                check()
                solve.scale_shift = scale_shift
                yield piece
        finally:
            state = slots.end(solve)
        return state[:target]

    def _advance(self, slots: Slots, solves: Sequence[Solve]) -> None:
        size = slots.hold(solves)
        self._graphs.run((slots.prompt, slots.target, size), partial(slots.step, size))

    def _times(self, steps: int) -> Tensor:
        """Scale and shift of each step, ``(steps, scale_shift_width)``."""
        if steps not in self._scale_shifts:
            self._scale_shifts[steps] = self._estimator.scale_shift(torch.arange(steps, device=self._device) / steps)
        return self._scale_shifts[steps]
