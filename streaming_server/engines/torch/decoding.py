"""Autoregressive decoding with the GPT over static buffers, with asynchronous readback of the codes.

Prompts of different lengths in a batch are left-padded, so that all rows write the same cache slot and are at the same
mel position.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from streaming_server.engines.torch.gpt import Cache, CodeGpt
from streaming_server.engines.torch.graphs import HIGH_PRIORITY, Graphs
from streaming_server.engines.torch.sampling import Sampling, Warp
from streaming_server.errors import EngineFailed

PositionRule = Literal["aligned", "cached"]
"""``aligned``: codes 1, 2, 3 … have mel positions 1, 2, 3 …, as in training. ``cached``: positions 2, 3, 4 …, as in
the cached decoding of the official implementation; kept for comparison."""

FIRST_CODE_POSITION: dict[PositionRule, int] = {"aligned": 1, "cached": 2}

PLACEHOLDER_ID = 1
"""Placeholder of the prompt in the official implementation; penalised from the start, like START_MEL."""

SPAN = 256
"""Attention reads the cache in multiples of this number of slots, so that there are few fixed shapes."""

BUCKET = 64
"""Recorded prompts are padded at the front to a multiple of this number of inputs."""

NOT_FINITE = "the model computed logits that are not finite for this text and voice"

LAG = {"cuda": 2}
"""By device: steps queued before the host reads a code. A STOP code is detected this many steps late."""


class Decoder:
    """Decodes one batch; its buffers stay at fixed addresses, as recorded graphs require.

    Args:
        gpt: The model.
        rows: Prompts of a batch.
        slots: Inputs that a row can hold: its prompt, with the padding of ``recorded_length``, and its codes.
        max_codes: Latents that a row can hold.
    """

    def __init__(self, gpt: CodeGpt, rows: int, slots: int, max_codes: int) -> None:
        self.gpt = gpt
        self.rows = rows
        weight = gpt.mel_head.weight
        device = weight.device
        self.device = device
        self.cache = Cache(gpt.shape, rows, slots, device, weight.dtype)
        self.warp = Warp(device)
        self.code = torch.zeros(rows, dtype=torch.long, device=device)
        self.seen = torch.zeros(rows, gpt.shape.mel_codes, dtype=torch.bool, device=device)
        self.noise = torch.ones(rows, gpt.shape.mel_codes, device=device)
        self.logits = torch.zeros(rows, gpt.shape.mel_codes, device=device)
        self.latent = torch.zeros(rows, gpt.shape.width, dtype=weight.dtype, device=device)
        self.latents = torch.zeros(rows, max_codes, gpt.shape.width, dtype=weight.dtype, device=device)
        self._slot = torch.zeros(1, dtype=torch.long, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._count = torch.zeros(1, dtype=torch.long, device=device)
        self._first_slot = torch.zeros(rows, 1, 1, dtype=torch.long, device=device)
        self._all_slots = torch.arange(slots, device=device)
        self._prompts: dict[int, Tensor] = {}
        """Inputs ``(rows, length, width)`` of the recorded prompts, by length, the shortest first."""
        self._graphs = Graphs(device, HIGH_PRIORITY)  # the next code is more urgent than the vocoder
        self.used = 0
        """Number of slots in use, tracked on the host to avoid a synchronisation."""

    def start(self, prompts: Sequence[Tensor], sampling: Sampling, positions: PositionRule = "aligned") -> None:
        """Process the prompts, each ``(n, width)``, and compute the first latent and its logits.

        Slots left by the previous decoding are cleared: their attention weight is 0 until they are written, but 0 times
        a value that is not finite is not 0.
        """
        shape = self.gpt.shape
        longest = max(prompt.shape[0] for prompt in prompts)
        length = next((recorded for recorded in self._prompts if recorded >= longest), longest)
        self.cache.clear(length, self.used)
        padding = [length - prompt.shape[0] for prompt in prompts]
        inputs = torch.stack([F.pad(prompt, (0, 0, pad, 0)) for prompt, pad in zip(prompts, padding, strict=True)])
        self._first_slot.copy_(torch.tensor(padding, device=self.device).view(-1, 1, 1))
        if length in self._prompts:
            inputs = self._prompts[length].copy_(inputs)
            self._graphs.run(("prompt", length), lambda: self._read_prompts(inputs))
        else:
            self._read_prompts(inputs)
        self.warp.set(sampling)
        self.seen.zero_()
        self.seen[:, PLACEHOLDER_ID] = True
        self.seen[:, shape.start_mel] = True
        self._slot.fill_(length)
        self._position.fill_(FIRST_CODE_POSITION[positions])
        self._count.fill_(1)
        self.used = length
        self.finite = Readback(self.logits.isfinite().all())

    def _read_prompts(self, inputs: Tensor) -> None:
        """Write the inputs ``(rows, length, width)`` to the first slots; compute the first latent and its logits."""
        slots = self._all_slots[: inputs.shape[1]]
        visible = (slots <= slots[:, None]) & (slots >= self._first_slot)  # (B, T, T)
        visible |= slots == slots[:, None]  # padding attends to itself: a softmax over no values is NaN
        latent, logits = self.gpt(inputs, self.cache, slots, visible)
        self.latent.copy_(latent)
        self.logits.copy_(logits)
        self.latents[:, 0] = latent

    def require_finite(self) -> None:
        """Wait until the prompt is processed.

        Raises:
            EngineFailed: the logits are not finite, so no code can be sampled.
        """
        if not self.finite.wait():
            raise EngineFailed(NOT_FINITE)

    def choose(self) -> None:
        """Sample the next code of each row from its logits and the noise."""
        self.code.copy_(self.warp.draw(self.logits, self.seen, self.noise))
        self.seen.scatter_(1, self.code[:, None], True)

    def advance(self, span: int) -> None:
        """Feed the codes and compute the next latent and its logits, attending to the first ``span`` cache slots."""
        slots = self._all_slots[:span]
        visible = (slots <= self._slot) & (slots >= self._first_slot)  # (B, 1, span)
        latent, logits = self.gpt(self.gpt.codes(self.code, self._position), self.cache, self._slot, visible)
        self.latent.copy_(latent)
        self.logits.copy_(logits)
        self.latents.index_copy_(1, self._count, latent[:, None])
        self._slot += 1
        self._position += 1
        self._count += 1

    def step(self) -> None:
        """Run ``advance`` and ``choose``, with a recorded graph if there is one."""
        span = self._span(self.used + 1)
        self._graphs.run(span, lambda: self._advance_and_choose(span))
        self.used += 1

    def advance_once(self) -> None:
        """Run ``advance`` without ``choose``, for callers that select the codes."""
        self.advance(self._span(self.used + 1))
        self.used += 1

    def feed(self, code: int) -> None:
        """Continue with a code that the caller selected."""
        self.code.fill_(code)
        self.advance_once()

    def follow(self, rows: Tensor, codes: Tensor) -> None:
        """Copy the state of row ``rows[i]`` to row ``i`` and continue with ``codes[i]``."""
        if rows.tolist() != list(range(self.rows)):
            self.cache.reorder(rows, self.used)
            self.latents.copy_(self.latents[rows])
            self.seen.copy_(self.seen[rows])
        self.code.copy_(codes)
        self.seen.scatter_(1, codes[:, None], True)

    def record(self, prompt: Tensor, longest: int = 0) -> None:
        """Record what is not recorded yet: a step for every span, and prompts of up to ``longest`` inputs by bucket.

        Call ``start`` before decoding again.
        """
        sampling = Sampling()
        spans = sorted({self._span(used) for used in range(1, self.cache.slots + 1)})
        for span in spans:
            if span not in self._graphs:
                self.start([prompt] * self.rows, sampling)
                self._graphs.record(span, partial(self._advance_and_choose, span))
        for length in range(BUCKET, recorded_length(longest) + 1, BUCKET):
            if length not in self._prompts:
                inputs = self.latents.new_zeros(self.rows, length, self.gpt.shape.width)
                self._graphs.record(("prompt", length), partial(self._read_prompts, inputs))
                self._prompts[length] = inputs
        self.used = self.cache.slots  # the next start clears what the warm-up wrote

    def run(
        self, prompts: Sequence[Tensor], max_codes: int, sampling: Sampling,
        generators: Sequence[torch.Generator | None], positions: PositionRule = "aligned",
    ) -> Iterator[list[int]]:  # fmt: skip
        """Yield the codes of all rows step by step, STOP included; codes of a row after its STOP are meaningless.

        After the ``n``-th item, ``latents[:, n - 1]`` holds its latents. The caller stops by closing the iterator.
        """
        self.start(prompts, sampling, positions)
        lag = LAG.get(self.device.type, 0)
        unread: deque[Readback] = deque()
        for count in range(max_codes):
            if sampling.do_sample:
                for noise, generator in zip(self.noise, generators, strict=True):
                    noise.exponential_(generator=generator)
            if count == 0:
                self.choose()
            else:
                self.step()
            unread.append(Readback(self.code))
            if len(unread) > lag:
                yield self._read(unread.popleft())
        while unread:
            yield self._read(unread.popleft())

    def _read(self, codes: Readback) -> list[int]:
        self.require_finite()
        values: list[int] = codes.wait()
        return values

    def _advance_and_choose(self, span: int) -> None:
        self.advance(span)
        self.choose()

    def _span(self, used: int) -> int:
        return min(-(-used // SPAN) * SPAN, self.cache.slots)


def recorded_length(inputs: int) -> int:
    """Length of the recorded prompt for so many inputs."""
    return -(-inputs // BUCKET) * BUCKET


class Readback:
    """Copies a small tensor to the host: the constructor queues the copy, ``wait`` waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.cpu().clone()

    def wait(self) -> Any:
        """Return the values: a number for a 0-d tensor, else a list."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._host.tolist()
