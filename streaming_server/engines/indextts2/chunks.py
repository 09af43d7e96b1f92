"""Converts codes to mel frames incrementally.

The flow was trained on complete utterances. An utterance is solved at once (``SEGMENT``, exact) or chunk by chunk
(``CHUNK``). Each solve of a chunk includes the reference, previous frames, the new frames and a few frames of
look-ahead. The noise of a frame is the same in every solve, so overlapping solves nearly agree; the remaining
difference is cross-faded in the mel. Chunk boundaries depend on the number of codes only, not on timing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, repeat

import torch
from torch import Tensor

from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.flow import Noise, Reference
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.arrays import Array, take
from streaming_server.engines.torch.pieces import Job

FADE = 8
"""Frames of the cross-fade from the previous chunk's expected frames to a new chunk: 93 ms."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How an utterance is split into chunks; a frame has 256 samples at 22 050 Hz, 86 frames are one second.

    Raises:
        ValueError: a value is below its minimum.
    """

    chunks: tuple[int, ...]
    """Frames of the first chunks; later chunks have the last size. Empty: one chunk at the end."""
    look_ahead: int = 16
    """Frames solved beyond a chunk."""
    past: int = 172
    """Maximum number of previous frames that a solve includes."""
    code_look_ahead: int = 8
    """Codes required beyond the solved frames, if the codec looks ahead (2.5)."""

    def __post_init__(self) -> None:
        if any(chunk < 1 for chunk in self.chunks):
            raise ValueError(f"chunks: {self.chunks}; each must be at least 1 frame")
        for name in ("look_ahead", "past", "code_look_ahead"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}; it must be at least 0")

    def ends(self) -> Iterator[int]:
        """Yield the frames at which chunks end, except for the last chunk of the utterance."""
        end = 0
        for chunk in chain(self.chunks, repeat(self.chunks[-1])) if self.chunks else ():
            end += chunk
            yield end

    def code_counts(self, acoustics: Acoustics, duration_factor: float = 1.0) -> Iterator[int]:
        """Yield the total number of codes that each chunk requires."""
        known = 0
        beyond = self.code_look_ahead if acoustics.decodes_ahead else 0
        for end in self.ends():
            known = next(n for n in count(known) if acoustics.frames(n, duration_factor) >= end + self.look_ahead)
            yield known + beyond

    def lengths(self, behind: int) -> list[int]:
        """Window lengths of a long utterance's chunks, with the look-ahead and up to ``behind`` previous frames."""
        found = set()
        first = 0
        for index, end in enumerate(self.ends()):
            found.add(min(first, behind) + end - first + self.look_ahead)
            if first >= behind and index >= len(self.chunks):
                break
            first = end
        return sorted(found)


SEGMENT = Pace(())
"""One solve per segment, exact."""

SIZES = (17, 34, 69, 138)
"""Frames of a chunk: 0.2, 0.4, 0.8 and 1.6 s. Small ones first give low latency, large ones later need fewer solves."""


def chunk_pace(first: int = 34, look_ahead: int = 16) -> Pace:
    """Chunks that double from ``first``, one of ``SIZES``, up to the largest."""
    return Pace(SIZES[SIZES.index(first) :], look_ahead)


CHUNK = chunk_pace()


@dataclass(frozen=True, slots=True)
class MelChunk:
    """Frames ``(n, bands)`` that follow those of the previous chunk."""

    settled: Tensor
    expected: Tensor
    """The expected next frames, ``(look_ahead, bands)``; empty for the last chunk."""


class MelStream:
    """The mel of one utterance.

    Args:
        acoustics: The stages.
        reference: The reference of the voice.
        pace: How to split the utterance.
        steps: Steps of each solve.
        seed: Seed of the noise; the same codes and seed give the same mel.
        duration_factor: Factor on the natural duration.
        statistics: ``Acoustics.statistics`` of an utterance of the same voice, to stabilise the first chunks.
        check: Called before each step of a solve.
    """

    def __init__(
        self, acoustics: Acoustics, reference: Reference, pace: Pace, steps: int, seed: int,
        duration_factor: float = 1.0, statistics: Tensor | None = None, check: Check = never_cancelled,
    ) -> None:  # fmt: skip
        self._check = check
        self._acoustics = acoustics
        self._reference = reference
        self._past = pace.past
        self._look_ahead = pace.look_ahead
        self._steps = steps
        self._noise = Noise(acoustics.bands, seed)
        self._duration_factor = duration_factor
        self._statistics = statistics
        self._cuts = zip(pace.code_counts(acoustics, duration_factor), pace.ends(), strict=False)
        self._next = next(self._cuts, None)
        self._codes = torch.empty(0, dtype=torch.long, device=acoustics.device)
        self._latents: Tensor | None = None
        """A copy: what is pushed may belong to another stream of the device, which then reuses its memory."""
        self._done = 0
        """Number of final frames."""
        self._expected = reference.mel[:0]
        """Frames that the last solve gave beyond the final ones."""

    def push(self, codes: Array, latents: Array | None = None) -> Job[list[MelChunk]]:
        """Add codes ``(n,)`` and, in 2.0, latents ``(n, width)``; return the chunks that are ready, possibly none."""
        device = self._acoustics.device
        self._codes = torch.cat([self._codes, take(codes, 1, device, torch.long)])
        if latents is not None:
            more = take(latents, 2, device, torch.float32)
            self._latents = torch.cat([more[:0] if self._latents is None else self._latents, more])
        ready = []
        while self._next is not None and len(self._codes) >= self._next[0]:
            known, end = self._next
            self._next = next(self._cuts)
            ready.append((yield from self._chunk(known, end, goes_on=True)))
        return ready

    def finish(self) -> Job[list[MelChunk]]:
        """Return the last chunk, if frames remain."""
        known = len(self._codes)
        end = self._acoustics.frames(known, self._duration_factor)
        return [(yield from self._chunk(known, end, goes_on=False))] if end > self._done else []

    def _chunk(self, known: int, end: int, goes_on: bool) -> Job[MelChunk]:
        """Solve the frames from ``_done`` to ``end``, given the first ``known`` codes."""
        latents = None if self._latents is None else self._latents[:known]
        pooled = self._statistics if goes_on or self._done else None  # a complete utterance uses its own statistics
        solved = end + self._look_ahead if goes_on else end
        mu = self._acoustics.mu(self._codes[:known], latents, self._duration_factor, pooled, goes_on)
        first = max(0, self._done - self._past)
        noise = self._noise(first, solved)
        solution = yield from self._acoustics.flow.solve(
            self._reference, mu[first:solved], noise, self._steps, self._check
        )
        mel = solution[self._done - first :]
        fade = min(FADE, len(self._expected), len(mel))
        if fade:
            weight = torch.arange(1, fade + 1, device=mel.device)[:, None] / (fade + 1)
            mel[:fade] = torch.lerp(self._expected[:fade], mel[:fade], weight)
        size, self._done = end - self._done, end
        self._expected = mel[size:]
        return MelChunk(mel[:size], self._expected)
