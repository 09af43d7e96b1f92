"""Measures the latency, speed and error of each streaming mode with these weights on this machine.

One sentence is decoded once, and its codes are synthesised in each mode. The error of a mode is the distance of its mel
from the exact one, relative to the distance between two exact mels with different noise, which are equally valid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streaming_server.engines.indextts2.acoustics import SAMPLE_RATE_HZ, Acoustics
from streaming_server.engines.indextts2.chunks import CHUNK, SEGMENT, MelStream, Pace
from streaming_server.engines.indextts2.flow import Reference
from streaming_server.engines.indextts2.reading import Segment
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.indextts2.synthesis import Synthesis, record
from streaming_server.engines.indextts2.voices import AnalysedVoice
from streaming_server.errors import InvalidRequest

LOOK_AHEADS = (4, 8, 16, 32)
STEPS = (25, 12, 8)
MAX_DISTANCE = 0.25
"""Maximum relative distance of a recommended mode. In a small trained model, a look-ahead of 16 frames gave 0.21 and
one of 8 frames 0.26."""
MAX_REAL_TIME_FACTOR = 0.8
"""Maximum real-time factor of a recommended mode, so that a stream does not stall."""
MAX_CODES = 600


@dataclass(frozen=True, slots=True)
class Utterance:
    """The codes of one utterance and the times at which they were decoded."""

    codes: Tensor
    latents: Tensor
    times_s: Sequence[float]
    """Time from the start of the decoding to each code."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Latency and speed of a mode."""

    first_audio_s: float
    """Time from the start of the decoding to the first samples."""
    codes_s: float
    """The part of ``first_audio_s`` spent on decoding."""
    real_time_factor: float
    """Measured with decoding and synthesis in sequence; a server runs them concurrently."""


@dataclass(frozen=True, slots=True)
class Mode:
    """One streaming mode with its measurements."""

    pace: Pace
    steps: int
    cost: Cost
    distance: float
    """Distance of its mel from the exact one, relative to the distance between two exact mels."""

    @property
    def name(self) -> str:
        return f"chunk, look-ahead {self.pace.look_ahead}" if self.pace.chunks else "segment"


def calibrate(runtime: Runtime, voice: AnalysedVoice, segment: Segment, seed: int = 0) -> Iterator[Mode]:
    """Measure all modes and yield each one; the exact mode, by segment with the most steps, is the first.

    Raises:
        InvalidRequest: the segment is too short to be split into chunks.
    """
    rng = torch.Generator(runtime.device).manual_seed(seed)
    pairs = runtime.decode(
        voice.conditioning, voice.emotion, segment.ids, MAX_CODES, generator=rng, language=segment.language
    )
    utterance = decoded(pairs)
    acoustics = runtime.acoustics
    paces = [SEGMENT, *(replace(CHUNK, look_ahead=frames) for frames in LOOK_AHEADS)]
    if len(utterance.codes) <= next(paces[-1].code_counts(acoustics)):
        raise InvalidRequest("the text is too short to be split into chunks; use a sentence of several seconds", "text")
    exact, other = (
        mel_of(acoustics, voice.full_reference, utterance, SEGMENT, STEPS[0], noise) for noise in (seed, seed + 1)
    )
    unit = rms_difference(other, exact)
    if acoustics.device.type == "cuda":
        for pace in paces:
            record(
                acoustics, pace, len((voice.stream_reference if pace.chunks else voice.full_reference).mel), len(exact)
            )
    for steps in STEPS:
        for pace in paces:
            reference = voice.stream_reference if pace.chunks else voice.full_reference
            mel = mel_of(acoustics, reference, utterance, pace, steps, seed, voice.statistics)
            stream = MelStream(acoustics, reference, pace, steps, seed, statistics=voice.statistics)
            yield Mode(pace, steps, cost(acoustics, stream, pace, utterance), rms_difference(mel, exact) / unit)


def recommended(modes: Sequence[Mode]) -> Mode:
    """Return the mode with the lowest latency among those within ``MAX_DISTANCE`` and ``MAX_REAL_TIME_FACTOR``.

    If none is fast enough, return the fastest within ``MAX_DISTANCE``; the exact mode always is.
    """
    near = [mode for mode in modes if mode.distance <= MAX_DISTANCE]
    fast = [mode for mode in near if mode.cost.real_time_factor <= MAX_REAL_TIME_FACTOR]
    if fast:
        return min(fast, key=lambda mode: mode.cost.first_audio_s)
    return min(near, key=lambda mode: mode.cost.real_time_factor)


def decoded(pairs: Iterator[tuple[int, Tensor]]) -> Utterance:
    codes, latents, times = [], [], []
    begun = time.perf_counter()
    for code, latent in pairs:
        codes.append(code)
        latents.append(latent)
        times.append(time.perf_counter() - begun)
    return Utterance(torch.tensor(codes), torch.stack(latents) if latents else torch.empty(0, 0), times)


def cost(acoustics: Acoustics, stream: MelStream, pace: Pace, utterance: Utterance) -> Cost:
    """Measure the synthesis of an utterance, given the times at which its codes were decoded."""
    speech = Synthesis(acoustics, stream)
    count = len(utterance.codes)
    known = list(up_to(pace.code_counts(acoustics), count))
    begun, samples, busy_s, first_s = 0, 0, 0.0, 0.0
    for end in [*known, None]:
        push: Callable[..., Tensor] = speech.finish if end is None else speech.push
        started = time.perf_counter()
        piece = push(utterance.codes[begun:end], utterance.latents[begun:end])
        if acoustics.device.type == "cuda":
            torch.cuda.synchronize(acoustics.device)
        busy_s += time.perf_counter() - started
        first_s = first_s or busy_s
        samples += len(piece)
        begun = end or begun
    codes_s = utterance.times_s[(known[0] if known else count) - 1]
    return Cost(codes_s + first_s, codes_s, (utterance.times_s[-1] + busy_s) * SAMPLE_RATE_HZ / samples)


def up_to(counts: Iterator[int], maximum: int) -> Iterator[int]:
    for count in counts:
        if count > maximum:
            return
        yield count


def mel_of(
    acoustics: Acoustics, reference: Reference, utterance: Utterance, pace: Pace, steps: int, seed: int,
    statistics: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Synthesise the mel ``(frames, bands)`` of an utterance."""
    stream = MelStream(acoustics, reference, pace, steps, seed, statistics=statistics)
    chunks = [*stream.push(utterance.codes, utterance.latents), *stream.finish()]
    return torch.cat([chunk.settled for chunk in chunks])


def rms_difference(mel: Tensor, other: Tensor) -> float:
    """Root mean square of the difference of two mels."""
    return float((mel - other).square().mean().sqrt())
