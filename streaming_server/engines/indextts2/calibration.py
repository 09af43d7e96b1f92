"""Measures the latency, speed and error of each streaming mode with these weights on this machine.

One sentence is decoded once, and its codes are synthesised in each mode. The error of a mode is the distance of its mel
from the exact one, relative to the distance between two exact mels with different noise, which are equally valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streaming_server.engines.indextts2.acoustics import SAMPLE_RATE_HZ, Acoustics
from streaming_server.engines.indextts2.chunks import CHUNK, SEGMENT, SIZES, MelStream, Pace, chunk_pace
from streaming_server.engines.indextts2.flow import Reference
from streaming_server.engines.indextts2.reading import Segment
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.indextts2.synthesis import Synthesis, record
from streaming_server.engines.indextts2.voices import AnalysedVoice
from streaming_server.engines.torch.calibration import (
    COST_HEADING,
    MAX_CODES,
    Cost,
    Utterance,
    advice,
    decoded,
    earliest,
    streamed,
    too_short,
)
from streaming_server.engines.torch.model_engine import run_alone
from streaming_server.engines.torch.pieces import result_of
from streaming_server.engines.torch.sampling import Sampling

LOOK_AHEADS = (4, 8, 16, 32)
STEPS = (25, 12, 8)
FIRST_CHUNKS = tuple(size for size in SIZES if size != CHUNK.chunks[0])
"""Sizes beside the default one, with its look-ahead."""
MAX_DISTANCE = 0.25
"""Maximum relative distance of a recommended mode. In a small trained model, a look-ahead of 16 frames gave 0.21 and
one of 8 frames 0.26."""

HEADING = f"{'mode':37} {'steps':>5} {'distance*':>9} {COST_HEADING}"


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
        if not self.pace.chunks:
            return "segment"
        return f"chunk, look-ahead {self.pace.look_ahead}, first chunk {self.pace.chunks[0]}"

    @property
    def row(self) -> str:
        return f"{self.name:37} {self.steps:5} {self.distance:9.3f} {self.cost.columns}"

    @property
    def settings(self) -> str:
        """The variables that choose it."""
        if not self.pace.chunks:
            return f"INDEXTTS2_STREAM=segment INDEXTTS2_STEPS={self.steps}"
        return (
            f"INDEXTTS2_STREAM=chunk INDEXTTS2_LOOK_AHEAD={self.pace.look_ahead}"
            f" INDEXTTS2_FIRST_CHUNK={self.pace.chunks[0]} INDEXTTS2_STEPS={self.steps}"
        )


def calibrate(
    runtime: Runtime, voice: AnalysedVoice, segment: Segment, report: Callable[[str], None], seed: int = 0
) -> str:
    """Report a table row by row, and return what to make of it.

    Raises:
        InvalidRequest: the segment is too short to be split into chunks.
    """
    report(HEADING)
    modes = []
    for mode in measured(runtime, voice, segment, seed):
        report(mode.row)
        modes.append(mode)
    best = recommended(modes)
    explanation = (
        "distance of the mel from the exact one, relative to the distance between two exact ones with different noise;"
        f" up to {MAX_DISTANCE}"
    )
    return advice(best, explanation, best.settings)


def measured(runtime: Runtime, voice: AnalysedVoice, segment: Segment, seed: int) -> Iterator[Mode]:
    """Measure all modes and yield each one; the exact mode, by segment with the most steps, is the first.

    Raises:
        InvalidRequest: the segment is too short to be split into chunks.
    """
    rng = torch.Generator(runtime.device).manual_seed(seed)
    prefix = runtime.prefix(voice.conditioning, voice.emotion, segment.ids, segment.language)
    utterance = decoded(runtime.join(prefix, MAX_CODES, Sampling(temperature=0.8), rng), runtime.writer.step)
    acoustics = runtime.acoustics
    paces = [
        SEGMENT,
        *(chunk_pace(look_ahead=frames) for frames in LOOK_AHEADS),
        *(chunk_pace(first) for first in FIRST_CHUNKS),
    ]
    if len(utterance.codes) <= max(next(pace.code_counts(acoustics)) for pace in paces if pace.chunks):
        raise too_short()
    exact, other = (
        mel_of(acoustics, voice.full_reference, utterance, SEGMENT, STEPS[0], noise) for noise in (seed, seed + 1)
    )
    unit = rms_difference(other, exact)
    statistics = None
    if voice.statistics is not None:
        statistics = run_alone(voice.statistics.of(runtime, voice), runtime.writer.step)
    if acoustics.device.type == "cuda":
        for pace in paces:
            record(
                acoustics, pace, len((voice.stream_reference if pace.chunks else voice.full_reference).mel), len(exact)
            )
    for steps in STEPS:
        for pace in paces:
            reference = voice.stream_reference if pace.chunks else voice.full_reference
            mel = mel_of(acoustics, reference, utterance, pace, steps, seed, statistics)
            stream = MelStream(acoustics, reference, pace, steps, seed, statistics=statistics)
            yield Mode(pace, steps, cost(acoustics, stream, pace, utterance), rms_difference(mel, exact) / unit)


def recommended(modes: Sequence[Mode]) -> Mode:
    """Return the mode with the lowest latency among those within ``MAX_DISTANCE`` and ``MAX_REAL_TIME_FACTOR``.

    If none is fast enough, return the fastest within ``MAX_DISTANCE``; the exact mode always is.
    """
    return earliest([mode for mode in modes if mode.distance <= MAX_DISTANCE])


def cost(acoustics: Acoustics, stream: MelStream, pace: Pace, utterance: Utterance) -> Cost:
    """Measure the synthesis of an utterance, given the times at which its codes were decoded."""
    speech = Synthesis(acoustics, stream)

    def piece(begun: int, end: int | None) -> Tensor:
        push = speech.finish if end is None else speech.push
        return result_of(push(utterance.codes[begun:end], utterance.latents[begun:end]))

    return streamed(utterance, pace.code_counts(acoustics), piece, SAMPLE_RATE_HZ)[0]


def mel_of(
    acoustics: Acoustics, reference: Reference, utterance: Utterance, pace: Pace, steps: int, seed: int,
    statistics: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Synthesise the mel ``(frames, bands)`` of an utterance."""
    stream = MelStream(acoustics, reference, pace, steps, seed, statistics=statistics)
    chunks = [*result_of(stream.push(utterance.codes, utterance.latents)), *result_of(stream.finish())]
    return torch.cat([chunk.settled for chunk in chunks])


def rms_difference(mel: Tensor, other: Tensor) -> float:
    """Root mean square of the difference of two mels."""
    return float((mel - other).square().mean().sqrt())
