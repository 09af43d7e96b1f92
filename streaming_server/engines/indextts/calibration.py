"""Measures what each look-ahead and each size of the first chunk costs with these weights on this machine.

One sentence of 1.0 or 1.5 is decoded once, and its codes are vocoded in each mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from streaming_server.engines.indextts.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts.runtime import LookAhead, Runtime
from streaming_server.engines.indextts.stream import CHUNKS, chunk_sizes, window_sizes
from streaming_server.engines.indextts.voices import AnalysedVoice
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
from streaming_server.engines.torch.sampling import Sampling
from streaming_server.engines.torch.windows import ChunkedVocoder

LOOK_AHEADS: Sequence[LookAhead] = ("exact", 16, 12, 8, 4, 2, 1)
FIRST_CHUNKS = (2, 8, 16, 32)
"""Sizes beside the default one; they change no sample of an exact stream."""
MAX_ERROR_DB = -40.0
"""Maximum error of a recommended mode, relative to the audio."""

HEADING = f"{'look-ahead':>10} {'first chunk':>11} {'error*, dB':>10} {COST_HEADING}"


@dataclass(frozen=True, slots=True)
class Mode:
    """One look-ahead with its measurements."""

    look_ahead: LookAhead
    first_chunk: int
    cost: Cost
    error_db: float
    """Level of the difference from vocoding all codes at once, relative to the level of the audio."""

    @property
    def row(self) -> str:
        return f"{self.look_ahead:>10} {self.first_chunk:>11} {self.error_db:>10.0f} {self.cost.columns}"


def calibrate(
    runtime: Runtime, voice: AnalysedVoice, token_ids: Sequence[int], report: Callable[[str], None], seed: int = 0
) -> str:
    """Report a table row by row, and return what to make of it.

    Raises:
        InvalidRequest: the text is too short to be split into chunks.
    """
    rng = torch.Generator(runtime.device).manual_seed(seed)
    joined = runtime.join(voice.conditioning, token_ids, MAX_CODES, Sampling(), rng)
    utterance = decoded(joined, runtime.writer.step)
    reach = runtime.look_ahead_codes("exact")
    if len(utterance.codes) <= max(CHUNKS[0], *FIRST_CHUNKS) + reach:
        raise too_short()
    if runtime.device.type == "cuda":
        chosen = [(ahead, CHUNKS[0]) for ahead in LOOK_AHEADS] + [("exact", first) for first in FIRST_CHUNKS]
        runtime.record(
            sorted({n for ahead, first in chosen for n in window_sizes(reach, _codes(runtime, ahead), first)})
        )
    report(HEADING)
    modes = []
    for mode in measured(runtime, voice, utterance):
        report(mode.row)
        modes.append(mode)
    best = recommended(modes)
    explanation = f"level of the difference from vocoding the whole, relative to the audio; up to {MAX_ERROR_DB:.0f} dB"
    return advice(best, explanation, f"LOOK_AHEAD={best.look_ahead} FIRST_CHUNK={best.first_chunk}")


def measured(runtime: Runtime, voice: AnalysedVoice, utterance: Utterance) -> Iterator[Mode]:
    """Measure the look-aheads with the default chunks, then the exact one with others."""
    whole = runtime.vocode(utterance.latents, voice.speaker)
    modes = [(look_ahead, CHUNKS[0]) for look_ahead in LOOK_AHEADS]
    modes += [("exact", first_chunk) for first_chunk in FIRST_CHUNKS]
    for look_ahead, first_chunk in modes:
        vocoder = runtime.chunked_vocoder(voice.speaker, look_ahead)
        ends = accumulate(chunk_sizes(_codes(runtime, look_ahead), first_chunk))

        def piece(begun: int, end: int | None, vocoder: ChunkedVocoder = vocoder) -> Tensor:
            latents = utterance.latents[begun:end]
            return vocoder.finish(latents) if end is None else vocoder.push(latents)

        cost, samples = streamed(utterance, ends, piece, SAMPLE_RATE_HZ)
        yield Mode(look_ahead, first_chunk, cost, level_db(samples - whole) - level_db(whole))


def recommended(modes: Sequence[Mode]) -> Mode:
    """Return the mode with the lowest latency among those within ``MAX_ERROR_DB`` and ``MAX_REAL_TIME_FACTOR``.

    If none is fast enough, return the fastest within ``MAX_ERROR_DB``; an exact mode always is.
    """
    return earliest([mode for mode in modes if mode.error_db <= MAX_ERROR_DB])


def level_db(samples: Tensor) -> float:
    """Root mean square in decibels."""
    return 20 * math.log10(max(float(samples.square().mean().sqrt()), 1e-12))


def _codes(runtime: Runtime, look_ahead: LookAhead) -> int:
    return runtime.look_ahead_codes(look_ahead)
