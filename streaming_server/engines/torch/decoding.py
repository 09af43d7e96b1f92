"""Autoregressive decoding with the GPT over static buffers, with asynchronous readback of the codes.

A decoder has a fixed number of rows. Each row has its own prompt, position and sampling parameters, so that prompts
join and leave between any two steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from streaming_server.engines.torch.attention import SPAN
from streaming_server.engines.torch.gpt import Cache, CodeGpt
from streaming_server.engines.torch.graphs import HIGH_PRIORITY, Graphs
from streaming_server.engines.torch.rows import NOT_FINITE, Readback, Row
from streaming_server.engines.torch.sampling import RANKED, Sampling, Warp
from streaming_server.errors import EngineFailed

PositionRule = Literal["aligned", "cached"]
"""``aligned``: codes 1, 2, 3 … have mel positions 1, 2, 3 …, as in training. ``cached``: positions 2, 3, 4 …, as in
the cached decoding of the official implementation; kept for comparison."""

FIRST_CODE_POSITION: dict[PositionRule, int] = {"aligned": 1, "cached": 2}

PLACEHOLDER_ID = 1
"""Placeholder of the prompt in the official implementation; penalised from the start, like START_MEL."""

BUCKET = 64
"""Recorded prompts are padded to a multiple of this number of inputs."""

MAX_UNTAKEN = 4
"""A row pauses while this number of its codes has been read and not taken."""

LAG = {"cuda": 2}
"""By device: steps queued before the host reads a code. A STOP code is detected this many steps late."""


class Decoder:
    """Decodes up to ``rows`` prompts; its buffers stay at fixed addresses, as recorded graphs require.

    A step draws a code for each row and then computes the logits that follow it. The second half runs at the beginning
    of the next ``step``: no row waits for it before its code is read.

    Args:
        gpt: The model.
        rows: Prompts that are decoded at the same time.
        slots: Inputs that a row can hold: its prompt, with the padding of ``recorded_length``, and its codes.
        max_codes: Latents that a row can hold.
    """

    def __init__(self, gpt: CodeGpt, rows: int, slots: int, max_codes: int) -> None:
        self.gpt = gpt
        self.rows = rows
        weight, shape = gpt.mel_head.weight, gpt.shape
        device = weight.device
        self.device = device
        slots += -slots % 8  # CUDA's kernels copy a mask of any other length in each attention
        self.cache = Cache(shape, rows, slots, device, weight.dtype)
        self.warp = Warp(device, rows)
        self.code = torch.full((rows,), shape.start_mel, dtype=torch.long, device=device)
        self.seen = torch.zeros(rows, shape.mel_codes, dtype=torch.bool, device=device)
        self.noise = torch.ones(rows, shape.mel_codes, device=device)
        self.logits = torch.zeros(rows, shape.mel_codes, device=device)
        # One more than its codes: rows that do not take part in a step write behind their last latent.
        self._latents = torch.zeros(rows, max_codes + 1, shape.width, dtype=weight.dtype, device=device)
        self.latents = self._latents[:, :max_codes]
        self._progress = torch.zeros(3, rows, 1, dtype=torch.long, device=device)
        self._slot, self._position, self._count = self._progress
        self._active = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        """Rows that draw in the current step."""
        self._drawn = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        """Rows whose last code is not fed yet."""
        self._all_slots = torch.arange(slots, device=device)
        self._graphs = Graphs(device, HIGH_PRIORITY)  # the next code is more urgent than the vocoder
        self._prompts: dict[int, Tensor] = {}
        """Inputs ``(1, length, width)`` of the recorded prompts, by length, the shortest first."""
        self._staging = self.cache.layers
        """Where recorded prompts write their keys and values: with several rows, a cache of its own."""
        self._staged = self.latents.new_zeros(1, shape.width), self.logits.new_zeros(1, shape.mel_codes)
        self._last_staged = torch.zeros(1, dtype=torch.long, device=device)
        self._used = [0] * rows
        """Number of slots in use by row, tracked on the host to avoid a synchronisation."""
        self._joined: dict[int, Row] = {}
        self._unfed: list[Row] = []
        """The rows of ``_drawn``."""
        self._was_active: set[int] = set()
        self._unread: deque[tuple[Readback, list[Row]]] = deque()
        self.has_drawn = False
        """Whether the latest step drew a code."""

    @property
    def used(self) -> int:
        """The largest number of slots that a row uses."""
        return max(self._used)

    @property
    def joined(self) -> int:
        """Number of rows in use."""
        return len(self._joined)

    @property
    def is_full(self) -> bool:
        return self.joined == self.rows

    # Rows that come and go

    def join(
        self, prompt: Tensor, max_codes: int, sampling: Sampling, generator: torch.Generator | None = None,
        positions: PositionRule = "aligned",
    ) -> Row:  # fmt: skip
        """Process a prompt ``(n, width)`` in the lowest free row; the next step draws its first code.

        ``latents[row.index, i]`` is the latent of its code ``i``, valid until another prompt joins in that row.
        """
        index = next(index for index in range(self.rows) if index not in self._joined)
        finite = self._begin(index, prompt, sampling, positions)
        row = Row(index, max_codes, sampling, generator, finite, is_ended=max_codes < 1, is_retired=max_codes < 1)
        self._joined[index] = row
        return row

    def leave(self, row: Row) -> None:
        """Free the row; its codes that are not read yet are dropped."""
        if self._joined.get(row.index) is row:
            self._retire(row)
            row.is_ended = True
            del self._joined[row.index]
            self._slot[row.index].fill_(0)  # attention that reads lengths has nothing to do in a free row

    def step(self) -> bool:
        """Draw the next code of each row and read the codes of an earlier step; return whether there was any."""
        self._feed_drawn()
        ready = [row for row in self._joined.values() if not row.is_retired and len(row.codes) < MAX_UNTAKEN]
        self.has_drawn = bool(ready)
        if ready:
            self._draw_for(ready)
        is_waiting = bool(self._unread)
        lag = LAG.get(self.device.type, 0) if ready else 0
        if len(self._unread) > lag:
            self._read()
        return is_waiting

    def run(
        self, prompts: Sequence[Tensor], max_codes: int, sampling: Sampling,
        generators: Sequence[torch.Generator | None], positions: PositionRule = "aligned",
    ) -> Iterator[list[int]]:  # fmt: skip
        """Yield the codes of all prompts step by step, STOP included; after its STOP a prompt has further STOPs.

        After the ``n``-th item, ``latents[:, n - 1]`` holds its latents. Closing the iterator ends the decoding.

        Raises:
            EngineFailed: the logits of a prompt are not finite.
        """
        rows = [
            self.join(prompt, max_codes, sampling, generator, positions)
            for prompt, generator in zip(prompts, generators, strict=True)
        ]
        try:
            while self.step():
                if any(row.codes for row in rows):
                    for row in rows:
                        row.require_finite()
                    yield [row.codes.popleft() if row.codes else self.gpt.shape.stop_mel for row in rows]
        finally:
            for row in rows:
                self.leave(row)

    # All rows in step, with codes that the caller selects

    def start(self, prompts: Sequence[Tensor], sampling: Sampling, positions: PositionRule = "aligned") -> None:
        """Process one prompt per row, each ``(n, width)``; equal neighbours are processed once."""
        self.finite: list[Readback] = []
        for index, prompt in enumerate(prompts):
            if index and prompt is prompts[index - 1]:
                self._copy(index - 1, index)
            else:
                self.finite.append(self._begin(index, prompt, sampling, positions))
        self.warp.set(sampling)

    def require_finite(self) -> None:
        """Wait until the prompts of ``start`` are processed.

        Raises:
            EngineFailed: the logits are not finite, so no code can be sampled.
        """
        if not all(finite.wait() for finite in self.finite):
            raise EngineFailed(NOT_FINITE)

    def advance_once(self) -> None:
        """Feed the codes of all rows and compute what follows them."""
        self._drawn.fill_(True)
        self.advance(self.rows, self._span(self.used + 1))
        self._used = [used + 1 for used in self._used]

    def feed(self, code: int) -> None:
        """Continue all rows with a code."""
        self.code.fill_(code)
        self.advance_once()

    def follow(self, rows: Tensor, codes: Tensor) -> None:
        """Copy the state of row ``rows[i]`` to row ``i`` and continue with ``codes[i]``.

        Both rows have prompts of the same length and the same number of codes.
        """
        if rows.tolist() != list(range(self.rows)):
            self.cache.reorder(rows, self.used)
            self.latents.copy_(self.latents[rows])
            self.seen.copy_(self.seen[rows])
        self.code.copy_(codes)
        self.seen.scatter_(1, codes[:, None], True)

    # The two halves of a step, over the first ``rows`` rows

    def draw(self, rows: int, ranked: int | None) -> None:
        """Sample a code for each active row from its logits and the noise; ``ranked`` as for `Warp.truncate`."""
        active, code = self._active[:rows], self.code[:rows]
        drawn = self.warp.draw(self.logits[:rows], self.seen[:rows], self.noise[:rows], ranked)
        code.copy_(torch.where(active[:, 0], drawn, code))
        self.seen[:rows].scatter_(1, code[:, None], True)  # of the other rows, a code that was seen before
        self._drawn[:rows].copy_(active)

    def advance(self, rows: int, span: int) -> None:
        """Feed the codes that were drawn and compute the next latents and logits, attending to ``span`` cache slots.

        The other rows compute values that are not used: they write to the slot and the latent that come next.
        """
        slot, drawn, logits = self._slot[:rows], self._drawn[:rows], self.logits[:rows]
        inputs = self.gpt.codes(self.code[:rows], self._position[:rows, 0])
        latent, after = self.gpt(inputs, self.cache.layers[:, :, :rows], slot, self._all_slots[:span])
        logits.copy_(torch.where(drawn, after, logits))
        self._latents[:rows].scatter_(1, self._count[:rows, :, None].expand(-1, -1, latent.shape[1]), latent[:, None])
        self._progress[:, :rows] += drawn
        drawn.zero_()

    # Recording

    def record(self, longest: int = 0) -> None:
        """Record the halves of a step, and prompts of up to ``longest`` inputs by bucket; nothing may be decoding."""
        spans = sorted({self._span(used) for used in range(1, self.cache.slots + 1)})
        keys: dict[Any, Any] = {}
        for rows in sorted({self._bucket(index) for index in range(self.rows)}):
            keys |= {("draw", rows, ranked): partial(self.draw, rows, ranked) for ranked in (RANKED, None)}
            keys |= {("advance", rows, span): partial(self.advance, rows, span) for span in spans}
        for key, function in keys.items():
            if key not in self._graphs:
                self._progress.zero_()
                self._graphs.record(key, function)
        if longest and self.rows > 1 and not self._prompts:
            self._staging = Cache(self.gpt.shape, 1, recorded_length(longest), self.device, self.latents.dtype).layers
        self._last_staged.zero_()
        for length in range(BUCKET, recorded_length(longest) + 1, BUCKET):
            if length not in self._prompts:
                inputs = self.latents.new_zeros(1, length, self.gpt.shape.width)
                self._graphs.record(("prompt", length), partial(self._read_staged, inputs))
                self._prompts[length] = inputs
        self._used = [self.cache.slots] * self.rows  # the next prompt clears what the warm-up wrote

    # Parts

    def _begin(self, index: int, prompt: Tensor, sampling: Sampling, positions: PositionRule) -> Readback:
        """Process a prompt in a row, and compute its first latent and logits; return whether these are finite.

        Slots left by the previous prompt and its padding are cleared: their attention weight is 0 until they are
        written, but 0 times a value that is not finite is not 0.
        """
        length = prompt.shape[0]
        recorded = next((recorded for recorded in self._prompts if recorded >= length), length)
        self.cache.clear(index, length, self._used[index] + BUCKET)
        row = self.cache.layers[:, :, index : index + 1]
        self._last_staged.fill_(length - 1)
        if recorded in self._prompts:
            inputs = self._prompts[recorded]
            inputs[0, :length] = prompt
            inputs[0, length:] = prompt[-1]
            self._graphs.run(("prompt", recorded), partial(self._read_staged, inputs))
            if self.rows > 1:
                row[:, :, :, :, :length] = self._staging[:, :, :, :, :length]
            latent, logits = self._staged
        else:
            latent, logits = self.gpt.read(prompt[None], row, self._last_staged)
        self.latents[index, 0] = latent[0]
        self.logits[index] = logits[0]
        # Kernels set the numbers: a copy of a tensor on the host would wait for all queued steps.
        self._slot[index].fill_(length)
        self._position[index].fill_(FIRST_CODE_POSITION[positions])
        self._count[index].fill_(1)
        self._drawn[index].fill_(False)
        self.warp.set(sampling, slice(index, index + 1))
        self.code[index].fill_(self.gpt.shape.start_mel)
        self.seen[index].fill_(False)
        for seen in (PLACEHOLDER_ID, self.gpt.shape.start_mel):
            self.seen[index, seen].fill_(True)
        self._used[index] = length
        return Readback(self.logits[index].isfinite().all())

    def _read_staged(self, inputs: Tensor) -> None:
        computed = self.gpt.read(inputs, self._staging, self._last_staged)
        for staged, value in zip(self._staged, computed, strict=True):
            staged.copy_(value)

    def _copy(self, source: int, target: int) -> None:
        """Give a row the state of another one at the end of its prompt."""
        used = self._used[source]
        self.cache.clear(target, used, self._used[target] + 1)
        self.cache.layers[:, :, target, :, :used] = self.cache.layers[:, :, source, :, :used]
        for state in (self.logits, self.seen, self.code, self._drawn):
            state[target].copy_(state[source])
        self.latents[target, 0].copy_(self.latents[source, 0])
        self._progress[:, target].copy_(self._progress[:, source])
        self._used[target] = used

    def _feed_drawn(self) -> None:
        if self._unfed:
            rows = self._bucket(max(row.index for row in self._unfed))
            span = self._span(max(self._used[row.index] for row in self._unfed) + 1)
            self._graphs.run(("advance", rows, span), partial(self.advance, rows, span))
            for row in self._unfed:
                self._used[row.index] += 1
            self._unfed = []

    def _draw_for(self, ready: Sequence[Row]) -> None:
        active = {row.index for row in ready}
        for index in active ^ self._was_active:
            self._active[index].fill_(index in active)
        self._was_active = active
        for row in ready:
            if row.sampling.do_sample:
                self.noise[row.index].exponential_(generator=row.generator)
        rows = self._bucket(max(active))
        ranked = RANKED if all(row.sampling.ranks_few for row in ready) else None
        self._graphs.run(("draw", rows, ranked), partial(self.draw, rows, ranked))
        self._unread.append((Readback(self.code[:rows]), list(ready)))
        self._unfed = list(ready)
        for row in ready:
            row.drawn += 1
            if row.drawn >= row.limit:
                self._retire(row)

    def _read(self) -> None:
        codes, rows = self._unread.popleft()
        values = codes.wait()
        for row in rows:
            if not row.is_ended:
                row.codes.append(values[row.index])
                row.read += 1
                row.is_ended = row.read == row.limit or values[row.index] == self.gpt.shape.stop_mel
                if row.is_ended:
                    self._retire(row)

    def _retire(self, row: Row) -> None:
        """Draw no more codes for a row. Its slot stays: what it computes from now on goes behind its last input."""
        if not row.is_retired:
            row.is_retired = True
            self._drawn[row.index].fill_(False)
            self._unfed = [other for other in self._unfed if other is not row]

    def _span(self, used: int) -> int:
        """Number of slots that a step reads, at most, if rows have used so many."""
        return self.cache.slots if self.gpt.gpt.reads_lengths else min(-(-used // SPAN) * SPAN, self.cache.slots)

    def _bucket(self, index: int) -> int:
        """Number of rows of the smallest recorded batch that contains a row.

        Where free rows cost next to nothing, there is one batch: products of matrices of other shapes round
        differently, so that a request could get other codes while others decode beside it.
        """
        return self.rows if self.gpt.gpt.reads_lengths else min(1 << index.bit_length(), self.rows)


def recorded_length(inputs: int) -> int:
    """Length of the recorded prompt for so many inputs."""
    return -(-inputs // BUCKET) * BUCKET
