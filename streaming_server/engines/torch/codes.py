"""Decodes prompts to codes and latents: one prompt code by code, or several prompts as a batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from torch import Tensor

from streaming_server.engines.threads import WAITING, Waiting
from streaming_server.engines.torch import beams
from streaming_server.engines.torch.attention import reads_lengths
from streaming_server.engines.torch.beams import Hypothesis
from streaming_server.engines.torch.compiled import compile_steps
from streaming_server.engines.torch.decoding import Decoder, PositionRule, recorded_length
from streaming_server.engines.torch.gpt import CodeGpt
from streaming_server.engines.torch.sampling import Sampling

log = logging.getLogger(__name__)

CodesAndLatents = Generator[tuple[int, Tensor], None, None]
JoinedCodes = Generator[tuple[int, Tensor] | Waiting, None, None]
DecodedBatch = Generator[Waiting | None, None, list[tuple[list[int], Tensor]]]


_DECAY = 0.9
"""Weight of all earlier steps together against the latest one, in the measured time."""


class CodeWriter:
    """Decodes with one GPT; ``prefix_rows`` is the number of inputs before the text."""

    def __init__(self, gpt: CodeGpt, prefix_rows: int) -> None:
        self._gpt = gpt
        self._prefix_rows = prefix_rows
        self._idle: list[Decoder] = []
        self._shared: Decoder | None = None
        self._has_joined = False
        self.step_s: dict[int, float] = {}
        """Measured seconds of a step by its number of rows, as a moving average."""

    # Prompts that share the rows of one decoder

    def open(self, rows: int) -> None:
        """Allocate the rows that `join` uses."""
        self._shared = self._decoder_of(rows)
        cache = self._shared.cache.layers
        size = cache.numel() * cache.element_size() // 2**20
        log.info("decoder ready: %d rows of %d slots, %d MiB of keys and values", rows, self._shared.cache.slots, size)

    @property
    def rows(self) -> int:
        """Maximum number of prompts that are decoded at the same time."""
        return 1 if self._shared is None else self._shared.rows

    def join(
        self, prompt: Tensor, max_codes: int, sampling: Sampling, generator: torch.Generator | None = None
    ) -> JoinedCodes:  # fmt: skip
        """Codes as they are decoded, together with those of other prompts, each with a view of its latent ``(width,)``.

        Yields ``WAITING`` where the next code needs a `step` first: one prompt joins at each step. Views are valid
        until the iterator has ended or is closed, which frees the row. While no rows are open, the iterator decodes
        alone.

        Raises:
            EngineFailed: the logits of the prompt are not finite.
        """
        decoder = self._shared
        if decoder is None:
            yield from self.write(prompt, max_codes, sampling, generator, views=True)
            return
        while decoder.is_full or self._has_joined:
            yield WAITING
        self._has_joined = True
        row = decoder.join(prompt, self._bounded(max_codes), sampling, generator)
        try:
            count = 0
            while row.codes or not row.is_ended:
                if not row.codes:
                    yield WAITING
                    continue
                row.require_finite()
                code = row.codes.popleft()
                if code == self._gpt.shape.stop_mel:
                    return
                yield code, decoder.latents[row.index, count]
                count += 1
        finally:
            decoder.leave(row)

    def expected_step_s(self, rows: int) -> float:
        """Seconds of a step with this number of rows, at most; 0 before any was measured. May be called on any thread.

        A step with more rows takes at most proportionally longer. The best of these bounds counts, so that a time that
        was measured in a busy moment does not keep that number of rows from being tried again.
        """
        measured = self.step_s.copy()
        return min((seconds * rows / count for count, seconds in measured.items() if count <= rows), default=0.0)

    def step(self) -> bool:
        """Decode the next code of every prompt that joined; return whether there was any."""
        if self._shared is None:
            return False
        self._has_joined = False
        rows, begun_s = self._shared.joined, time.monotonic()
        if not self._shared.step():
            return False
        if self._shared.has_drawn:  # a step that only reads codes takes almost no time, and may have no rows at all
            spent_s = time.monotonic() - begun_s
            self.step_s[rows] = spent_s + _DECAY * (self.step_s.get(rows, spent_s) - spent_s)
        return True

    # Prompts that decode alone

    def write(
        self, prompt: Tensor, max_codes: int, sampling: Sampling, generator: torch.Generator | None = None,
        positions: PositionRule = "aligned", views: bool = False,
    ) -> CodesAndLatents:  # fmt: skip
        """Codes as they are decoded, each with its latent ``(width,)``, until STOP or ``max_codes``.

        Without a generator, torch's global one is used. Closing the iterator stops the decoding. With ``cached``
        positions the latents come from a second pass with aligned positions, as in the official implementation.

        With ``views`` the latents are views of the decoder's buffer. They are complete when the code is yielded, while
        a copy on the same stream would wait for the steps that are queued, and valid until the next decoding begins.
        """
        pairs = self._write(prompt, self._bounded(max_codes), sampling, generator, positions, views)
        return pairs if positions == "aligned" else self._second_pass(prompt, pairs)

    def _write(
        self, prompt: Tensor, max_codes: int, sampling: Sampling, generator: torch.Generator | None,
        positions: PositionRule, views: bool,
    ) -> CodesAndLatents:  # fmt: skip
        with self._decoder() as decoder:
            for count, (code,) in enumerate(decoder.run([prompt], max_codes, sampling, [generator], positions)):
                if code == self._gpt.shape.stop_mel:
                    return
                latent = decoder.latents[0, count]
                yield code, latent if views else latent.clone()

    def _second_pass(self, prompt: Tensor, pairs: CodesAndLatents) -> CodesAndLatents:
        with self._decoder() as decoder:
            decoder.start([prompt], Sampling())
            for count, (code, _) in enumerate(pairs):
                yield code, decoder.latents[0, count].clone()
                decoder.feed(code)

    def write_together(
        self, prompts: Sequence[Tensor], max_codes: int, sampling: Sampling, num_beams: int = 1,
        length_penalty: float = 0.0, generators: Sequence[torch.Generator | None] | None = None,
    ) -> DecodedBatch:  # fmt: skip
        """Codes and latents ``(codes, width)`` of several prompts; there is one generator per prompt.

        Yields after every step, so that the caller can stop. A single prompt with one beam is decoded as by `join`.
        """
        max_codes = self._bounded(max_codes)
        if len(prompts) == num_beams == 1:
            single: list[int] = []
            views: list[Tensor] = []
            joined = self.join(prompts[0], max_codes, sampling, generators[0] if generators else None)
            with closing(joined):
                for pair in joined:
                    if isinstance(pair, Waiting):
                        yield pair
                        continue
                    single.append(pair[0])
                    views.append(pair[1])
                    yield None
            return [(single, torch.stack(views) if views else prompts[0][:0])]
        slots = max(prompt.shape[0] for prompt in prompts) + max_codes
        rngs = generators or [None] * len(prompts)
        decoder = Decoder(self._gpt, len(prompts) * num_beams, slots, max_codes)
        if num_beams > 1:
            found: list[Hypothesis] = yield from beams.search(
                decoder, prompts, num_beams, max_codes, sampling, length_penalty, rngs
            )
            return [(hypothesis.codes, hypothesis.latents) for hypothesis in found]
        codes: list[list[int]] = [[] for _ in prompts]
        for step in decoder.run(prompts, max_codes, sampling, rngs):
            for row, code in enumerate(step):
                if code != self._gpt.shape.stop_mel:
                    codes[row].append(code)
            yield None
        return [(row, decoder.latents[index, : len(row)].clone()) for index, row in enumerate(codes)]

    def record(self) -> None:
        """Record the decoding step, compiled in parts, and the prompts; without CUDA, run each once."""
        weight = self._gpt.mel_head.weight
        if weight.device.type == "cuda":
            compile_steps(self._gpt.gpt)
            shape = self._gpt.shape
            self._gpt.gpt.reads_lengths = reads_lengths(shape.heads, shape.head_width, weight)
        if self._shared is not None:
            self._shared.record(self._longest_prompt)
        else:
            with self._decoder() as decoder:
                decoder.record(self._longest_prompt)

    def check(self, text_ids: Tensor) -> Tensor:
        """Return the ids unchanged.

        Raises:
            ValueError: the text has more tokens than the model has positions.
        """
        if text_ids.numel() > self._gpt.shape.max_text:
            raise ValueError(f"{text_ids.numel()} text tokens; the model takes at most {self._gpt.shape.max_text}")
        return text_ids

    @property
    def _longest_prompt(self) -> int:
        return self._prefix_rows + self._gpt.shape.max_text + 3

    def _bounded(self, max_codes: int) -> int:
        return min(max_codes, self._gpt.shape.max_mel)

    @contextmanager
    def _decoder(self) -> Iterator[Decoder]:
        """A one-row decoder that is not in use."""
        decoder = self._idle.pop() if self._idle else self._decoder_of(1)
        try:
            yield decoder
        finally:
            self._idle.append(decoder)

    def _decoder_of(self, rows: int) -> Decoder:
        slots = recorded_length(self._longest_prompt) + self._gpt.shape.max_mel
        return Decoder(self._gpt, rows, slots, self._gpt.shape.max_mel)
