"""Converts segments of text to audio while the model is still decoding.

The calling thread decodes and a second thread vocodes, so that the next segment is decoded while the audio of the
previous one is computed. Several requests can be synthesised at the same time, each by its own generator.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, repeat

import torch
from torch import Tensor

from streaming_server.domain import FloatSamples, Generation
from streaming_server.engines.indextts.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts.runtime import LookAhead, Runtime
from streaming_server.engines.indextts.voices import AnalysedVoice
from streaming_server.engines.threads import Check, Waiting
from streaming_server.engines.torch.codes import DecodedBatch
from streaming_server.engines.torch.pieces import Job
from streaming_server.engines.torch.sampling import Sampling
from streaming_server.engines.torch.vocoding import VocoderThread, Vocoding

CHUNKS = (4, 8, 16, 32)
"""Codes of a segment's first chunks; later chunks have the last size. Small chunks first give low latency, large ones
later need fewer launches."""

SILENT_CODE = 52
LONGEST_SILENCE = 10
"""Maximum number of consecutive silent codes that are vocoded; the model sometimes repeats them endlessly."""

FADE_S = 0.005
"""Length of the fades between two segments; a discontinuity would be audible as a click."""

SEED_STRIDE = 0x9E3779B97F4A7C15
"""Difference between the seeds of consecutive segments of a request, so that their random numbers differ."""

Audio = Generator[FloatSamples | Waiting | None, None, None]
"""Yields audio when it is final; None after a step without audio, so that the caller can stop; and ``WAITING`` where
nothing can be done before the next step of the rows or the end of a vocoding job. Closing it stops the synthesis."""

Segments = Sequence[Sequence[int]]
"""Token ids of each segment."""


class Synthesiser:
    """Synthesises requests with a runtime; must be called by the thread that owns the runtime.

    Args:
        runtime: The models. While its rows are open, several requests may be synthesised at the same time.
        look_ahead: Codes required after a chunk before it is vocoded.
        first_chunk: Codes of the first chunk.
        wake: As for `VocoderThread`.
    """

    def __init__(
        self, runtime: Runtime, look_ahead: LookAhead = "exact", first_chunk: int = CHUNKS[0],
        wake: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._runtime = runtime
        self._look_ahead = look_ahead
        self._first_chunk = first_chunk
        self.thread = VocoderThread(runtime.device, SAMPLE_RATE_HZ, wake)

    def synthesise_by_token(self, voice: AnalysedVoice, segments: Segments, generation: Generation) -> Audio:
        """Yield audio in chunks during decoding with one beam; the first needs its size and the look-ahead in codes."""
        sampling = sampling_of(generation)
        with self.thread.session() as vocoding:
            for index, generator in enumerate(generators(self._runtime.device, generation, len(segments))):
                audio = self._segment(vocoding, voice, index, len(segments))
                sizes = chunk_sizes(self._runtime.look_ahead_codes(self._look_ahead), self._first_chunk)
                size = next(sizes)
                latents: list[Tensor] = []
                joined = self._runtime.join(
                    voice.conditioning, segments[index], generation.max_mel_tokens, sampling, generator
                )
                with closing(joined) as pairs:
                    for latent in without_long_silence(pairs):
                        if isinstance(latent, Waiting):
                            yield vocoding.ready_or_waiting()
                            continue
                        if latent is not None:
                            latents.append(latent)
                        if len(latents) == size:
                            vocoding.submit(audio.push, partial(torch.stack, latents), is_computed=True)
                            latents, size = [], next(sizes)
                        yield vocoding.ready()
                vocoding.submit(audio.finish, partial(stacked, latents), is_computed=True)
            yield from vocoding.rest()

    def synthesise_by_sentence(
        self, voice: AnalysedVoice, segments: Segments, generation: Generation, batch: int
    ) -> Audio:
        """Yield audio one segment at a time, with ``num_beams`` beams; ``batch`` segments are decoded together."""
        sampling = sampling_of(generation)
        rngs = generators(self._runtime.device, generation, len(segments))
        with self.thread.session() as vocoding:
            for start in range(0, len(segments), batch):
                decoding = self._runtime.decode_batch(
                    voice.conditioning, segments[start : start + batch], generation.max_mel_tokens, sampling,
                    generation.num_beams, generation.length_penalty, rngs[start : start + batch],
                )  # fmt: skip
                decoded = yield from while_decoding(decoding, vocoding)
                for index, (codes, latents) in enumerate(decoded, start):
                    spoken = without_long_silence(zip(codes, latents, strict=True))
                    kept = [latent for latent in spoken if isinstance(latent, Tensor)]
                    if kept:
                        audio = self._segment(vocoding, voice, index, len(segments))
                        vocoding.submit(audio.complete, partial(torch.stack, kept))
            yield from vocoding.rest()

    def close(self) -> None:
        self.thread.close()

    def _segment(self, vocoding: Vocoding, voice: AnalysedVoice, index: int, count: int) -> SegmentAudio:
        return SegmentAudio(
            self._runtime, voice, self._look_ahead, vocoding.check, fade_in=index > 0, fade_out=index + 1 < count
        )


class SegmentAudio:
    """The samples of one segment, with fades where another segment adjoins."""

    def __init__(
        self, runtime: Runtime, voice: AnalysedVoice, look_ahead: LookAhead, check: Check, fade_in: bool, fade_out: bool
    ) -> None:
        self._runtime = runtime
        self._check = check
        self._speaker = voice.speaker
        self._vocoder = runtime.chunked_vocoder(voice.speaker, look_ahead, check)
        self._fade_in = fade_in
        self._fade_out = fade_out

    def push(self, latents: Tensor) -> Job[Tensor]:
        return self._begun((yield from self._vocoder.pushed(latents)))

    def finish(self, latents: Tensor | None) -> Job[Tensor]:
        """The remaining samples; because of the look-ahead they include at least the last code and can be faded."""
        return self._ended(self._begun((yield from self._vocoder.finished(latents))))

    def complete(self, latents: Tensor) -> Job[Tensor]:
        return self._ended(self._begun((yield from self._runtime.vocoded(latents, self._speaker, self._check))))

    def _begun(self, samples: Tensor) -> Tensor:
        if self._fade_in and samples.numel():
            self._fade_in = False
            return samples * slope(samples)
        return samples

    def _ended(self, samples: Tensor) -> Tensor:
        return samples * slope(samples).flip(0) if self._fade_out else samples


def slope(samples: Tensor, rate_hz: int = SAMPLE_RATE_HZ) -> Tensor:
    """Fade-in factors for the samples ``(n,)``: from 0 to 1 within ``FADE_S``, then 1."""
    rise = torch.arange(samples.numel(), device=samples.device) / (FADE_S * rate_hz)
    return rise.clamp(max=1.0)


def while_decoding(
    decoding: DecodedBatch, vocoding: Vocoding
) -> Generator[FloatSamples | Waiting | None, None, list[tuple[list[int], Tensor]]]:
    """Yield the audio of earlier segments while the next ones are decoded; return their codes and latents."""
    with closing(decoding):
        while True:
            try:
                waiting = next(decoding)
            except StopIteration as end:
                decoded: list[tuple[list[int], Tensor]] = end.value
                return decoded
            yield vocoding.ready() if waiting is None else vocoding.ready_or_waiting()


def stacked(latents: Sequence[Tensor]) -> Tensor | None:
    return torch.stack(list(latents)) if latents else None


def chunks_from(first: int) -> list[int]:
    """Sizes of the chunks, each twice the one before, up to the last of ``CHUNKS``."""
    return [first, *(first << doubled for doubled in range(1, 6) if first << doubled <= CHUNKS[-1])]


def chunk_sizes(look_ahead: int, first_chunk: int = CHUNKS[0]) -> Iterator[int]:
    """Number of codes before each push; the first includes the look-ahead."""
    first, *growing = chunks_from(first_chunk)
    return chain([first + look_ahead], growing, repeat(CHUNKS[-1]))


def window_sizes(reach: int, look_ahead: int, first_chunk: int = CHUNKS[0]) -> list[int]:
    """Lengths of the windows in which the chunks of a long segment are vocoded; graphs are recorded for these."""
    sizes, behind = [], 0
    for chunk in (*chunks_from(first_chunk), CHUNKS[-1]):
        sizes.append(min(behind, reach) + chunk + look_ahead)
        behind += chunk
    return sorted(set(sizes))


def without_long_silence(pairs: Iterable[tuple[int, Tensor] | Waiting]) -> Iterator[Tensor | Waiting | None]:
    """The latent of each code, or None for a silent code beyond ``LONGEST_SILENCE``."""
    silent = 0
    for pair in pairs:
        if isinstance(pair, Waiting):
            yield pair
            continue
        code, latent = pair
        silent = silent + 1 if code == SILENT_CODE else 0
        yield latent if silent <= LONGEST_SILENCE else None


def sampling_of(generation: Generation) -> Sampling:
    return Sampling(
        generation.do_sample, generation.top_p, generation.top_k, generation.temperature, generation.repetition_penalty
    )


def generators(device: torch.device, generation: Generation, count: int) -> list[torch.Generator]:
    """One generator per segment, so that a segment does not depend on the others in its batch."""
    seed = random.SystemRandom().getrandbits(64) if generation.seed is None else generation.seed
    return [
        torch.Generator(device).manual_seed((seed + index * SEED_STRIDE) % 2**63) for index in range(count)
    ]  # fmt: skip
