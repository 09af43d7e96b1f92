"""Converts segments of text to audio while the model is still decoding.

The calling thread decodes and a second thread vocodes, so that the next segment is decoded while the audio of the
previous one is computed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, repeat
from typing import TypeVar

import torch
from torch import Tensor

from streaming_server.domain import FloatSamples, Generation
from streaming_server.engines.indextts.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts.runtime import LookAhead, Runtime
from streaming_server.engines.indextts.voices import AnalysedVoice
from streaming_server.engines.threads import Cancelled, Check
from streaming_server.engines.torch.sampling import Sampling

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

Given = TypeVar("Given")

Audio = Generator[FloatSamples | None, None, None]
"""Yields audio when it is final, and None after a step without audio, so that the caller can stop. Closing it stops the
synthesis."""

Segments = Sequence[Sequence[int]]
"""Token ids of each segment."""


class Narrator:
    """Synthesises one request at a time with a runtime; must be called by the thread that owns the runtime."""

    def __init__(self, runtime: Runtime, look_ahead: LookAhead = "exact", first_chunk: int = CHUNKS[0]) -> None:
        self._runtime = runtime
        self._look_ahead = look_ahead
        self._first_chunk = first_chunk
        self._vocoding = VocoderThread(runtime.device)

    def speak_by_token(self, voice: AnalysedVoice, segments: Segments, generation: Generation) -> Audio:
        """Yield audio in chunks during decoding with one beam; the first needs its size and the look-ahead in codes."""
        sampling = sampling_of(generation)
        with self._vocoding as vocoding:
            for index, generator in enumerate(generators(self._runtime.device, generation, len(segments))):
                audio = self._segment(voice, index, len(segments))
                sizes = chunk_sizes(self._runtime.look_ahead_codes(self._look_ahead), self._first_chunk)
                size = next(sizes)
                latents: list[Tensor] = []
                pairs = self._runtime.decode(
                    voice.conditioning, segments[index], generation.max_mel_tokens, sampling.do_sample, sampling.top_p,
                    sampling.top_k, sampling.temperature, sampling.repetition_penalty, generator=generator, views=True,
                )  # fmt: skip
                for latent in without_long_silence(pairs):
                    if latent is not None:
                        latents.append(latent)
                    if len(latents) == size:
                        vocoding.submit(audio.push, partial(torch.stack, latents), is_computed=True)
                        latents, size = [], next(sizes)
                    yield vocoding.ready()
                vocoding.submit(audio.finish, partial(stacked, latents), is_computed=True)
            yield from vocoding.rest()

    def speak_by_sentence(self, voice: AnalysedVoice, segments: Segments, generation: Generation, batch: int) -> Audio:
        """Yield audio one segment at a time, with ``num_beams`` beams; ``batch`` segments are decoded together."""
        sampling = sampling_of(generation)
        rngs = generators(self._runtime.device, generation, len(segments))
        with self._vocoding as vocoding:
            for start in range(0, len(segments), batch):
                decoding = self._runtime.decode_batch(
                    voice.conditioning, segments[start : start + batch], generation.max_mel_tokens, sampling,
                    generation.num_beams, generation.length_penalty, rngs[start : start + batch],
                )  # fmt: skip
                while True:
                    try:
                        next(decoding)
                    except StopIteration as end:
                        decoded: list[tuple[list[int], Tensor]] = end.value
                        break
                    yield vocoding.ready()
                for index, (codes, latents) in enumerate(decoded, start):
                    spoken = without_long_silence(zip(codes, latents, strict=True))
                    kept = [latent for latent in spoken if latent is not None]
                    if kept:
                        audio = self._segment(voice, index, len(segments))
                        vocoding.submit(audio.complete, partial(torch.stack, kept))
            yield from vocoding.rest()

    def close(self) -> None:
        self._vocoding.close()

    def _segment(self, voice: AnalysedVoice, index: int, count: int) -> SegmentAudio:
        return SegmentAudio(
            self._runtime, voice, self._look_ahead, self._vocoding.check, fade_in=index > 0, fade_out=index + 1 < count
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

    def push(self, latents: Tensor) -> Tensor:
        return self._begun(self._vocoder.push(latents))

    def finish(self, latents: Tensor | None) -> Tensor:
        """The remaining samples; because of the look-ahead they include at least the last code and can be faded."""
        return self._ended(self._begun(self._vocoder.finish(latents)))

    def complete(self, latents: Tensor) -> Tensor:
        return self._ended(self._begun(self._runtime.vocode(latents, self._speaker, self._check)))

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


class VocoderThread:
    """Runs vocoding jobs in order, concurrently with the decoding and, on CUDA, on a separate stream.

    Leaving the context cancels pending jobs and stops the running one at its next ``check``.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="vocoder")
        self._pending: deque[Future[FloatSamples]] = deque()
        self._is_left = False

    def __enter__(self) -> VocoderThread:
        self._is_left = False
        return self

    def check(self) -> None:
        """Called by the running job.

        Raises:
            Cancelled: the context was left.
        """
        if self._is_left:
            raise Cancelled

    def __exit__(self, *_: object) -> None:
        """Cancel the jobs and wait until the thread is idle."""
        self._is_left = True
        for future in self._pending:
            future.cancel()
        while self._pending:
            future = self._pending.popleft()
            if not future.cancelled():
                future.exception()

    def submit(
        self, vocode: Callable[[Given], Tensor], copy: Callable[[], Given], *, is_computed: bool = False
    ) -> None:
        """Queue a job.

        Args:
            vocode: The job. It is called with what ``copy`` returned.
            copy: Called at once. It copies the inputs, whose buffers may be overwritten before the job begins.
            is_computed: The device has computed the inputs, as the host has read a later result of the same stream.
                On CUDA the copy then does not wait for the decoding steps that are queued.
        """
        copied = None
        if self._copies is None:
            given = copy()
        else:
            decoding = torch.cuda.current_stream(self._device)
            if not is_computed:
                self._copies.wait_stream(decoding)
            with torch.cuda.stream(self._copies):
                given = copy()
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._copies)
            decoding.wait_event(copied)
        self._pending.append(self._executor.submit(self._vocode, vocode, given, copied))

    def ready(self) -> FloatSamples | None:
        """The next audio if it is complete, else None; does not wait."""
        if not self._pending or not self._pending[0].done():
            return None
        return self._pending.popleft().result()

    def rest(self) -> Iterator[FloatSamples]:
        while self._pending:
            yield self._pending.popleft().result()

    def close(self) -> None:
        self._executor.shutdown()

    def _vocode(self, vocode: Callable[[Given], Tensor], given: Given, copied: torch.cuda.Event | None) -> FloatSamples:
        with torch.cuda.stream(self._stream):
            if self._stream is not None and copied is not None:
                self._stream.wait_event(copied)
            samples: FloatSamples = vocode(given).cpu().numpy()
            return samples


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


def without_long_silence(pairs: Iterable[tuple[int, Tensor]]) -> Iterator[Tensor | None]:
    """The latent of each code, or None for a silent code beyond ``LONGEST_SILENCE``."""
    silent = 0
    for code, latent in pairs:
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
