"""What the calibrations of the model runtimes share: an utterance decoded once, and what it costs to stream it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from streaming_server.engines.threads import Waiting
from streaming_server.engines.torch.codes import JoinedCodes
from streaming_server.errors import InvalidRequest

MAX_REAL_TIME_FACTOR = 0.8
"""Maximum real-time factor of a recommended mode, so that a stream does not stall."""
MAX_CODES = 600
"""Maximum number of codes of the utterance."""


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

    @property
    def columns(self) -> str:
        return f"{self.first_audio_s * 1e3:16.0f} {self.real_time_factor:17.3f}"


COST_HEADING = f"{'first audio, ms':>16} {'real-time factor':>17}"
"""Of ``Cost.columns``."""


class Measured(Protocol):
    """A mode with its measurements."""

    @property
    def cost(self) -> Cost: ...


Mode = TypeVar("Mode", bound=Measured)


def earliest(near: Sequence[Mode]) -> Mode:
    """Return the mode with the lowest latency within ``MAX_REAL_TIME_FACTOR``, or if there is none, the fastest."""
    fast = [mode for mode in near if mode.cost.real_time_factor <= MAX_REAL_TIME_FACTOR]
    if fast:
        return min(fast, key=lambda mode: mode.cost.first_audio_s)
    return min(near, key=lambda mode: mode.cost.real_time_factor)


def advice(best: Measured, explanation: str, settings: str) -> str:
    """What to make of a table: what its marked column means, whether the best mode is fast enough, and its settings."""
    is_slow = best.cost.real_time_factor > MAX_REAL_TIME_FACTOR
    slow = " On this machine the mode is too slow for streaming without gaps." if is_slow else ""
    return f"* {explanation} is acceptable. Compare the audio by ear before use.{slow}\n\n{settings}"


def too_short() -> InvalidRequest:
    """Return the error for a text that is too short to compare chunks with the whole."""
    return InvalidRequest("the text is too short to be split into chunks; use a sentence of several seconds", "text")


def decoded(joined: JoinedCodes, step: Callable[[], bool]) -> Utterance:
    """Decode a prompt that joined; the steps are recorded ones where the decoder has them."""
    codes, latents, times = [], [], []
    begun = time.perf_counter()
    with closing(joined):
        for pair in joined:
            if isinstance(pair, Waiting):
                step()
                continue
            code, latent = pair
            codes.append(code)
            latents.append(latent.clone())
            times.append(time.perf_counter() - begun)
    return Utterance(torch.tensor(codes), torch.stack(latents) if latents else torch.empty(0, 0), times)


def streamed(
    utterance: Utterance, ends: Iterable[int], piece: Callable[[int, int | None], Tensor], rate_hz: int
) -> tuple[Cost, Tensor]:
    """Synthesise an utterance in pieces; return what it cost and the samples.

    Args:
        utterance: Its codes and the times at which they were decoded.
        ends: Number of codes at which each piece but the last is synthesised, in ascending order.
        piece: Synthesises the codes from one number to another; None is the end of the utterance.
        rate_hz: Sampling rate.
    """
    count = len(utterance.codes)
    known = list(takewhile(lambda end: end <= count, ends))
    begun, busy_s, first_s, pieces = 0, 0.0, 0.0, []
    for end in [*known, None]:
        started = time.perf_counter()
        samples = piece(begun, end)
        if samples.device.type == "cuda":
            torch.cuda.synchronize(samples.device)
        busy_s += time.perf_counter() - started
        first_s = first_s or busy_s
        pieces.append(samples)
        begun = end or begun
    audio = torch.cat(pieces)
    codes_s = utterance.times_s[(known[0] if known else count) - 1]
    factor = (utterance.times_s[-1] + busy_s) * rate_hz / len(audio)
    return Cost(codes_s + first_s, codes_s, factor), audio
