"""The model as one object: features, conditioning, decoding, vocoding. Tensors in, tensors out.

This module does not know files, text, requests, threads or how a stream is cut into chunks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from streaming_server.engines.indextts import beams, features
from streaming_server.engines.indextts.arrays import Array, take
from streaming_server.engines.indextts.beams import Hypothesis
from streaming_server.engines.indextts.decoding import Decoder, PositionRule
from streaming_server.engines.indextts.gpt import Gpt
from streaming_server.engines.indextts.sampling import Sampling
from streaming_server.engines.indextts.vocoder import ChunkedVocoder, Vocoder, Windows

CPU = torch.device("cpu")

CodesAndLatents = Generator[tuple[int, Tensor], None, None]

LookAhead = int | Literal["exact"]
"""Codes that must be known beyond a chunk before it is vocoded; ``exact``: as many as the vocoder reaches."""


class Runtime:
    """GPT and vocoder on one device. Not to be called by two threads at once, but for ``vocode`` beside ``decode``."""

    def __init__(self, gpt: Gpt, vocoder: Vocoder) -> None:
        self.gpt = gpt
        self.vocoder = vocoder
        self.device = gpt.mel_head.weight.device
        self.dtype = gpt.mel_head.weight.dtype
        self._windows = Windows(vocoder)
        self._idle: list[Decoder] = []

    @property
    def samples_per_code(self) -> int:
        return self.vocoder.shape.samples_per_code

    def look_ahead_codes(self, look_ahead: LookAhead) -> int:
        return self.vocoder.shape.reach if look_ahead == "exact" else look_ahead

    # The voice

    def resample(self, wav: Array, from_hz: int) -> Tensor:
        """Samples ``(n,)`` at ``from_hz`` → samples at 24 kHz, float32 on the CPU."""
        return features.resample(take(wav, 1, CPU, torch.float32), from_hz)

    def log_mel(self, wav: Array) -> Tensor:
        """Samples ``(n,)`` at 24 kHz → log-mel ``(mels, n // 256 + 1)``, float32 on the CPU.

        Raises:
            ValueError: too few samples for one frame.
        """
        return features.log_mel(take(wav, 1, CPU, torch.float32), self.vocoder.speaker_encoder.n_mels)

    def condition(self, mel: Array) -> Tensor:
        """Log-mel ``(mels, T)`` → conditioning ``(latents, width)``, float32 on the device."""
        return self.gpt.condition(self._take(mel, 2))

    def speaker(self, mel: Array) -> Tensor:
        """Log-mel ``(mels, T)`` → speaker embedding ``(speaker width,)``, float32 on the device."""
        embedding: Tensor = self.vocoder.speaker_encoder(self._take(mel, 2)[None])
        return embedding[0]

    # The words

    def decode(
        self, conditioning: Array, text_ids: Array, max_codes: int, do_sample: bool = True, top_p: float = 0.8,
        top_k: int = 30, temperature: float = 1.0, repetition_penalty: float = 10.0,
        positions: PositionRule = "aligned", generator: torch.Generator | None = None,
    ) -> CodesAndLatents:  # fmt: skip
        """Codes as they are decoded, each with its latent ``(width,)``, until STOP or ``max_codes``.

        Without a generator the draws come from torch's global one. Closing the iterator stops the decoding. With
        ``cached`` positions the latents are, as in the public program, those of a second pass with aligned ones.

        Raises:
            ValueError: more text than the model has positions for.
        """
        sampling = Sampling(do_sample, top_p, top_k, temperature, repetition_penalty)
        prompt = self._prompt(conditioning, text_ids)
        pairs = self._decode(prompt, self._bounded(max_codes), sampling, generator, positions)
        return pairs if positions == "aligned" else self._second_pass(prompt, pairs)

    def _decode(
        self, prompt: Tensor, max_codes: int, sampling: Sampling, generator: torch.Generator | None,
        positions: PositionRule,
    ) -> CodesAndLatents:  # fmt: skip
        with self._decoder() as decoder:
            for count, (code,) in enumerate(decoder.run([prompt], max_codes, sampling, [generator], positions)):
                if code == self.gpt.shape.stop_mel:
                    return
                yield code, decoder.latents[0, count].clone()

    def _second_pass(self, prompt: Tensor, pairs: CodesAndLatents) -> CodesAndLatents:
        with self._decoder() as decoder:
            decoder.start([prompt], Sampling())
            for count, (code, _) in enumerate(pairs):
                yield code, decoder.latents[0, count].clone()
                decoder.feed(code)

    def decode_batch(
        self, conditioning: Array, texts: Sequence[Array], max_codes: int, sampling: Sampling, num_beams: int = 1,
        length_penalty: float = 0.0, generators: Sequence[torch.Generator | None] | None = None,
    ) -> Generator[None, None, list[tuple[list[int], Tensor]]]:  # fmt: skip
        """Codes and latents ``(codes, width)`` of several texts in one voice, decoded together.

        Yields after every step, so that the caller may stop; the generators are one a text.

        Raises:
            ValueError: more text than the model has positions for.
        """
        prompts = [self._prompt(conditioning, text) for text in texts]
        max_codes = self._bounded(max_codes)
        slots = max(prompt.shape[0] for prompt in prompts) + max_codes
        chances = generators or [None] * len(texts)
        decoder = Decoder(self.gpt, len(texts) * num_beams, slots, max_codes)
        if num_beams > 1:
            found: list[Hypothesis] = yield from beams.search(
                decoder, prompts, num_beams, max_codes, sampling, length_penalty, chances
            )
            return [(hypothesis.codes, hypothesis.latents) for hypothesis in found]
        codes: list[list[int]] = [[] for _ in texts]
        stopped = [False] * len(texts)
        for step in decoder.run(prompts, max_codes, sampling, chances):
            for row, code in enumerate(step):
                stopped[row] = stopped[row] or code == self.gpt.shape.stop_mel
                if not stopped[row]:
                    codes[row].append(code)
            yield
            if all(stopped):
                break
        return [(row, decoder.latents[index, : len(row)].clone()) for index, row in enumerate(codes)]

    # The sound

    def vocode(self, latents: Array, speaker: Array) -> Tensor:
        """Latents ``(n, width)`` and embedding ``(speaker width,)`` → samples ``(n · samples_per_code,)``, float32."""
        return self._windows(self._take(latents, 2, self.dtype), self._take(speaker, 1, self.dtype)).float()

    def chunked_vocoder(self, speaker: Array, look_ahead: LookAhead = "exact") -> ChunkedVocoder:
        """A vocoder for latents that come in pieces; with ``exact`` its samples equal those of ``vocode``."""
        return ChunkedVocoder(
            self._windows, self._take(speaker, 1, self.dtype), self.vocoder.shape, self.look_ahead_codes(look_ahead)
        )

    # Speed

    def record(self, windows: Sequence[int]) -> None:
        """Record the decoding step and the vocoder over windows of so many codes; without CUDA, run each once."""
        with self._decoder() as decoder:
            decoder.record(self._prompt(self.gpt.perceiver_encoder.latents, []))
        for length in windows:
            self._windows.record(length)

    def _take(self, array: Array, dimensions: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return take(array, dimensions, self.device, dtype)

    def _prompt(self, conditioning: Array, text_ids: Array) -> Tensor:
        ids = self._take(text_ids, 1, torch.long)
        if ids.numel() > self.gpt.shape.max_text:
            raise ValueError(f"{ids.numel()} text tokens; the model takes at most {self.gpt.shape.max_text}")
        return self.gpt.prompt(self._take(conditioning, 2), ids)

    def _bounded(self, max_codes: int) -> int:
        return min(max_codes, self.gpt.shape.max_mel)

    @contextmanager
    def _decoder(self) -> Iterator[Decoder]:
        """A one-row decoder that no other decoding is using."""
        shape = self.gpt.shape
        slots = self.gpt.perceiver_encoder.latents.shape[0] + shape.max_text + 3 + shape.max_mel
        decoder = self._idle.pop() if self._idle else Decoder(self.gpt, 1, slots, shape.max_mel + 1)
        try:
            yield decoder
        finally:
            self._idle.append(decoder)
