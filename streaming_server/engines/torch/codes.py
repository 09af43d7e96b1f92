"""Decodes prompts to codes and latents: one prompt code by code, or several prompts as a batch."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from streaming_server.engines.torch import beams
from streaming_server.engines.torch.beams import Hypothesis
from streaming_server.engines.torch.compiled import compile_steps
from streaming_server.engines.torch.decoding import Decoder, PositionRule, recorded_length
from streaming_server.engines.torch.gpt import CodeGpt
from streaming_server.engines.torch.sampling import Sampling

CodesAndLatents = Generator[tuple[int, Tensor], None, None]
DecodedBatch = Generator[None, None, list[tuple[list[int], Tensor]]]


class CodeWriter:
    """Decodes with one GPT; ``prefix_rows`` is the number of inputs before the text."""

    def __init__(self, gpt: CodeGpt, prefix_rows: int) -> None:
        self._gpt = gpt
        self._prefix_rows = prefix_rows
        self._idle: list[Decoder] = []

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

        Yields after every step, so that the caller can stop. A single prompt with one beam uses the recorded steps.
        """
        max_codes = self._bounded(max_codes)
        if len(prompts) == num_beams == 1:
            pairs = []
            for pair in self.write(prompts[0], max_codes, sampling, generators[0] if generators else None):
                pairs.append(pair)
                yield
            latents = [latent for _, latent in pairs]
            return [([code for code, _ in pairs], torch.stack(latents) if latents else prompts[0][:0])]
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
            yield
        return [(row, decoder.latents[index, : len(row)].clone()) for index, row in enumerate(codes)]

    def record(self) -> None:
        """Record the decoding step, compiled in parts, and the prompts; without CUDA, run each once."""
        if self._gpt.mel_head.weight.device.type == "cuda":
            compile_steps(self._gpt.gpt)
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
        shape = self._gpt.shape
        slots = recorded_length(self._longest_prompt) + shape.max_mel
        decoder = self._idle.pop() if self._idle else Decoder(self._gpt, 1, slots, shape.max_mel)
        try:
            yield decoder
        finally:
            self._idle.append(decoder)
