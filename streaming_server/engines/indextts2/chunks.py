"""From codes to mel while the codes still come.

The flow was trained on whole utterances. Either an utterance is solved at once (``SEGMENT``: exact), or chunk by chunk
(``CHUNK``): each solve sees the reference, some of its own past, the new frames and a few beyond them; since noise
belongs to the frame, two solves agree where they overlap, and what is left of their difference is blended in the mel.
Where a chunk ends depends on the count of codes alone, never on when they came.
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

FADE = 8
"""Frames over which a chunk takes over from what the chunk before it expected: 93 ms."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How an utterance is cut; frames are of 256 samples at 22 050 Hz, 86 a second.

    Raises:
        ValueError: a number below its least.
    """

    chunks: tuple[int, ...]
    """Frames of the first chunks; the last size is that of all that follow. None: all at once, at the end."""
    look_ahead: int = 16
    """Frames solved beyond a chunk."""
    past: int = 172
    """Most frames of the own past that a solve sees."""
    code_look_ahead: int = 8
    """Codes that are known beyond what is solved, where their decoding looks ahead (2.5)."""

    def __post_init__(self) -> None:
        if any(chunk < 1 for chunk in self.chunks):
            raise ValueError(f"chunks: {self.chunks}; each must be at least 1 frame")
        for name in ("look_ahead", "past", "code_look_ahead"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}; it must be at least 0")

    def ends(self) -> Iterator[int]:
        """Frames at which the chunks end; the last chunk, at the utterance's end, is not among them."""
        end = 0
        for chunk in chain(self.chunks, repeat(self.chunks[-1])) if self.chunks else ():
            end += chunk
            yield end

    def code_counts(self, acoustics: Acoustics, duration_factor: float = 1.0) -> Iterator[int]:
        """Codes that must be known before each chunk can be made, all before it counted in."""
        known = 0
        beyond = self.code_look_ahead if acoustics.decodes_ahead else 0
        for end in self.ends():
            known = next(n for n in count(known) if acoustics.frames(n, duration_factor) >= end + self.look_ahead)
            yield known + beyond

    def lengths(self, behind: int) -> list[int]:
        """Frames of a long utterance's chunks, each with what is ahead and up to ``behind`` frames of its past."""
        found = set()
        first = 0
        for index, end in enumerate(self.ends()):
            found.add(min(first, behind) + end - first + self.look_ahead)
            if first >= behind and index >= len(self.chunks):
                break
            first = end
        return sorted(found)


SEGMENT = Pace(())
"""One exact solve."""

CHUNK = Pace((34, 69, 138))
"""Chunks of 0.4, 0.8 and then 1.6 s: early sound, then few solves."""


@dataclass(frozen=True, slots=True)
class MelChunk:
    """Frames ``(n, bands)`` that follow those of the chunk before."""

    settled: Tensor
    expected: Tensor
    """What is likely to follow, ``(look_ahead, bands)``; none behind the last chunk."""


class MelStream:
    """The mel of one utterance.

    Args:
        acoustics: The stages.
        reference: How the voice sounds.
        pace: Where to cut.
        steps: Of each solve.
        seed: Of the noise: the same codes with the same seed sound the same.
        duration_factor: How much longer than by itself the utterance is to last.
        statistics: ``Acoustics.statistics`` of an utterance of the same voice, to steady the first chunks.
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
        self._done = 0
        """Frames that are settled."""
        self._expected = reference.mel[:0]
        """What the last solve gave beyond them."""

    def push(self, codes: Array, latents: Array | None = None) -> Iterator[MelChunk]:
        """Codes ``(n,)``, in 2.0 with their latents ``(n, width)`` → the chunks that can now be made, perhaps none."""
        device = self._acoustics.device
        self._codes = torch.cat([self._codes, take(codes, 1, device, torch.long)])
        if latents is not None:
            more = take(latents, 2, device, torch.float32)
            self._latents = more if self._latents is None else torch.cat([self._latents, more])
        while self._next is not None and len(self._codes) >= self._next[0]:
            known, end = self._next
            self._next = next(self._cuts)
            yield self._chunk(known, end, goes_on=True)

    def finish(self) -> Iterator[MelChunk]:
        """The chunk that is left, if one is."""
        known = len(self._codes)
        end = self._acoustics.frames(known, self._duration_factor)
        if end > self._done:
            yield self._chunk(known, end, goes_on=False)

    def _chunk(self, known: int, end: int, goes_on: bool) -> MelChunk:
        """The frames from ``_done`` to ``end``, of the first ``known`` codes."""
        latents = None if self._latents is None else self._latents[:known]
        pooled = self._statistics if goes_on or self._done else None  # a whole utterance has statistics of its own
        solved = end + self._look_ahead if goes_on else end
        mu = self._acoustics.mu(self._codes[:known], latents, self._duration_factor, pooled, goes_on)
        first = max(0, self._done - self._past)
        noise = self._noise(first, solved)
        solution = self._acoustics.flow.solve(self._reference, mu[first:solved], noise, self._steps, self._check)
        mel = solution[self._done - first :]
        fade = min(FADE, len(self._expected), len(mel))
        if fade:
            weight = torch.arange(1, fade + 1, device=mel.device)[:, None] / (fade + 1)
            mel[:fade] = torch.lerp(self._expected[:fade], mel[:fade], weight)
        size, self._done = end - self._done, end
        self._expected = mel[size:]
        return MelChunk(mel[:size], self._expected)
