"""What each way to stream costs and gains with these weights on this machine, and which one to take.

One sentence is decoded once, and its codes are made to sound in each way; how far a mel is from the exact one is told
beside how far two exact ones with different noise are apart, since the model takes those for the same. This module does
not know files, settings or requests.
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
NEAR = 0.25
"""Share of the distance between two noises that a way may be from the exact one: in the small trained model of the
facts, a look-ahead of 16 frames lay at 0.21 and one of 8 at 0.26."""
FAST = 0.8
"""Real-time factor that leaves a stream room not to falter."""
MOST_CODES = 600


@dataclass(frozen=True, slots=True)
class Utterance:
    """Codes as they were decoded."""

    codes: Tensor
    latents: Tensor
    times_s: Sequence[float]
    """From the beginning to each code."""


@dataclass(frozen=True, slots=True)
class Cost:
    first_audio_s: float
    """From the beginning of the decoding to the first samples."""
    codes_s: float
    """Of it, until the codes were there."""
    real_time_factor: float
    """Codes and sound taken one after the other; a server overlaps them."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to stream, measured."""

    pace: Pace
    steps: int
    cost: Cost
    distance: float
    """Of its mel from the exact one, in shares of the distance between two noises."""

    @property
    def name(self) -> str:
        return f"chunk, look-ahead {self.pace.look_ahead}" if self.pace.chunks else "segment"


def calibrate(runtime: Runtime, voice: AnalysedVoice, segment: Segment, seed: int = 0) -> Iterator[Way]:
    """Each way as it is measured; the exact one, by segment in the most steps, first.

    Raises:
        InvalidRequest: the segment is too short to be cut.
    """
    chance = torch.Generator(runtime.device).manual_seed(seed)
    pairs = runtime.decode(
        voice.conditioning, voice.emotion, segment.ids, MOST_CODES, generator=chance, language=segment.language
    )
    utterance = decoded(pairs)
    acoustics = runtime.acoustics
    paces = [SEGMENT, *(replace(CHUNK, look_ahead=frames) for frames in LOOK_AHEADS)]
    if len(utterance.codes) <= next(paces[-1].code_counts(acoustics)):
        raise InvalidRequest("the text is too short to be cut into chunks: take a sentence of some seconds", "text")
    exact, other = (mel_of(acoustics, voice.whole, utterance, SEGMENT, STEPS[0], noise) for noise in (seed, seed + 1))
    unit = apart(other, exact)
    if acoustics.device.type == "cuda":
        for pace in paces:
            record(acoustics, pace, len((voice.part if pace.chunks else voice.whole).mel), len(exact))
    for steps in STEPS:
        for pace in paces:
            reference = voice.part if pace.chunks else voice.whole
            mel = mel_of(acoustics, reference, utterance, pace, steps, seed, voice.statistics)
            stream = MelStream(acoustics, reference, pace, steps, seed, statistics=voice.statistics)
            yield Way(pace, steps, cost(acoustics, stream, pace, utterance), apart(mel, exact) / unit)


def recommended(ways: Sequence[Way]) -> Way:
    """The one that is heard first of those near enough and fast enough; else the fastest of those near enough.

    The exact one is always near enough, so there is one.
    """
    near = [way for way in ways if way.distance <= NEAR]
    fast = [way for way in near if way.cost.real_time_factor <= FAST]
    if fast:
        return min(fast, key=lambda way: way.cost.first_audio_s)
    return min(near, key=lambda way: way.cost.real_time_factor)


def decoded(pairs: Iterator[tuple[int, Tensor]]) -> Utterance:
    codes, latents, times = [], [], []
    begun = time.perf_counter()
    for code, latent in pairs:
        codes.append(code)
        latents.append(latent)
        times.append(time.perf_counter() - begun)
    return Utterance(torch.tensor(codes), torch.stack(latents) if latents else torch.empty(0, 0), times)


def cost(acoustics: Acoustics, stream: MelStream, pace: Pace, utterance: Utterance) -> Cost:
    """What it takes to make codes sound that came when they came."""
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


def up_to(counts: Iterator[int], most: int) -> Iterator[int]:
    for count in counts:
        if count > most:
            return
        yield count


def mel_of(
    acoustics: Acoustics, reference: Reference, utterance: Utterance, pace: Pace, steps: int, seed: int,
    statistics: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``(frames, bands)``."""
    stream = MelStream(acoustics, reference, pace, steps, seed, statistics=statistics)
    chunks = [*stream.push(utterance.codes, utterance.latents), *stream.finish()]
    return torch.cat([chunk.settled for chunk in chunks])


def apart(mel: Tensor, other: Tensor) -> float:
    """Root mean square of the difference."""
    return float((mel - other).square().mean().sqrt())
