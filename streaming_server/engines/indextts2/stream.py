"""Converts segments of text to audio, one segment at a time or in chunks during decoding.

The calling thread decodes; a second thread runs the flow and the vocoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from streaming_server.domain import Generation
from streaming_server.engines.indextts.stream import Audio, generators, sampling_of, slope, while_decoding
from streaming_server.engines.indextts2.chunks import CHUNK, SEGMENT, MelStream, Pace
from streaming_server.engines.indextts2.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts2.reading import Segment
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.indextts2.synthesis import Synthesis
from streaming_server.engines.indextts2.voices import AnalysedVoice
from streaming_server.engines.threads import Waiting
from streaming_server.engines.torch.codes import DecodedBatch
from streaming_server.engines.torch.pieces import Job
from streaming_server.engines.torch.vocoding import VocoderThread, Vocoding

PAUSE_S = 0.2
"""Silence between two segments, as in the official implementation."""

Codes = tuple[Tensor, Tensor]
"""Codes ``(n,)`` and their latents ``(n, width)``."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Voice, emotion and parameters of a request."""

    voice: AnalysedVoice
    emotion: Tensor
    """``(width,)``."""
    generation: Generation
    duration_factor: float = 1.0
    """Factor on the natural duration; 2.5 only."""


class Synthesiser:
    """Synthesises requests with a runtime; must be called by the thread that owns the runtime.

    Args:
        runtime: The models. While its rows are open, several requests may be synthesised at the same time.
        steps: Number of solver steps.
        pace: How segments are split into chunks.
        wake: As for `VocoderThread`.
    """

    def __init__(
        self, runtime: Runtime, steps: int, pace: Pace = CHUNK, wake: Callable[[], None] | None = None
    ) -> None:
        self._runtime = runtime
        self._steps = steps
        self._pace = pace
        self.thread = VocoderThread(runtime.device, SAMPLE_RATE_HZ, wake)

    def synthesise_by_chunk(self, delivery: Delivery, segments: Sequence[Segment]) -> Audio:
        """Yield audio in chunks during decoding with one beam."""
        runtime, generation, voice = self._runtime, delivery.generation, delivery.voice
        sampling = sampling_of(generation)
        rngs = generators(runtime.device, generation, len(segments))
        with self.thread.session() as vocoding:
            statistics = None
            if voice.statistics is not None and segments:
                statistics = yield from voice.statistics.of(runtime, voice)
            for index, (segment, rng) in enumerate(zip(segments, rngs, strict=True)):
                prefix = runtime.prefix(voice.conditioning, delivery.emotion, segment.ids, segment.language)
                pairs = runtime.join(prefix, generation.max_mel_tokens, sampling, rng)
                speech = self._synthesis(vocoding, delivery, self._pace, rng.initial_seed(), statistics)
                audio = SegmentAudio(speech, index > 0, index + 1 < len(segments))
                ends = self._pace.code_counts(runtime.acoustics, delivery.duration_factor)
                known, end = 0, next(ends)
                codes: list[int] = []
                latents: list[Tensor] = []
                with closing(pairs):
                    for pair in pairs:
                        if isinstance(pair, Waiting):
                            yield vocoding.ready_or_waiting()
                            continue
                        code, latent = pair
                        if code < self._runtime.sounds:
                            codes.append(code)
                            latents.append(latent)
                        if known + len(codes) == end:
                            vocoding.submit(audio.push, partial(gathered, codes, latents), is_computed=True)
                            known, end = end, next(ends)
                            codes, latents = [], []
                        yield vocoding.ready()
                vocoding.submit(audio.finish, partial(remaining, codes, latents), is_computed=True)
            yield from vocoding.rest()

    def synthesise_by_segment(self, delivery: Delivery, segments: Sequence[Segment], batch: int) -> Audio:
        """Yield audio one segment at a time, with ``num_beams`` beams; ``batch`` segments are decoded together."""
        rngs = generators(self._runtime.device, delivery.generation, len(segments))
        with self.thread.session() as vocoding:
            for start in range(0, len(segments), batch):
                decoding = self._decode(delivery, segments[start : start + batch], rngs[start : start + batch])
                decoded = yield from while_decoding(decoding, vocoding)
                for index, (codes, latents) in enumerate(decoded, start):
                    row = torch.tensor(codes)
                    sounds = row < self._runtime.sounds
                    if sounds.any():
                        speech = self._synthesis(vocoding, delivery, SEGMENT, rngs[index].initial_seed())
                        audio = SegmentAudio(speech, index > 0, index + 1 < len(segments))
                        vocoding.submit(audio.finish, partial(selected, row, latents, sounds))
            yield from vocoding.rest()

    def close(self) -> None:
        self.thread.close()

    def _decode(self, delivery: Delivery, segments: Sequence[Segment], rngs: Sequence[torch.Generator]) -> DecodedBatch:
        runtime, generation, voice = self._runtime, delivery.generation, delivery.voice
        prefixes = [
            runtime.prefix(voice.conditioning, delivery.emotion, segment.ids, segment.language) for segment in segments
        ]
        return runtime.decode_batch(
            prefixes, generation.max_mel_tokens, sampling_of(generation), generation.num_beams,
            generation.length_penalty, rngs,
        )  # fmt: skip

    def _synthesis(
        self, vocoding: Vocoding, delivery: Delivery, pace: Pace, seed: int, statistics: Tensor | None = None
    ) -> Synthesis:
        voice = delivery.voice
        acoustics, reference = self._runtime.acoustics, voice.stream_reference if pace.chunks else voice.full_reference
        mel = MelStream(
            acoustics, reference, pace, self._steps, seed, delivery.duration_factor, statistics, vocoding.check
        )
        return Synthesis(acoustics, mel, vocoding.check)


class SegmentAudio:
    """The samples of one segment, with fades and a leading pause where another segment adjoins."""

    def __init__(self, speech: Synthesis, pause: bool, fade_out: bool) -> None:
        self._speech = speech
        self._pause = pause
        self._fade_out = fade_out

    def push(self, codes: Codes) -> Job[Tensor]:
        return self._begun((yield from self._speech.push(*codes)))

    def finish(self, codes: Codes | None) -> Job[Tensor]:
        """The remaining samples; because of the look-ahead they are longer than the fade."""
        samples = self._begun((yield from self._speech.finish(*(codes or (None, None)))))
        return samples * slope(samples, SAMPLE_RATE_HZ).flip(0) if self._fade_out else samples

    def _begun(self, samples: Tensor) -> Tensor:
        if not self._pause or not samples.numel():
            return samples
        self._pause = False
        return torch.cat([samples.new_zeros(round(PAUSE_S * SAMPLE_RATE_HZ)), samples * slope(samples, SAMPLE_RATE_HZ)])


def selected(codes: Tensor, latents: Tensor, chosen: Tensor) -> Codes:
    return codes[chosen], latents[chosen.to(latents.device)]


def gathered(codes: Sequence[int], latents: Sequence[Tensor]) -> Codes:
    return torch.tensor(codes), torch.stack(list(latents))


def remaining(codes: Sequence[int], latents: Sequence[Tensor]) -> Codes | None:
    return gathered(codes, latents) if codes else None
