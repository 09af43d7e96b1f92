"""Converts codes to audio incrementally: computes mel frames in chunks and vocodes each chunk."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.chunks import MelChunk, MelStream, Pace
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.arrays import Array
from streaming_server.engines.torch.pieces import Job


class Synthesis:
    """The audio of one utterance. Previous frames are a chunk's left context, and expected frames its right context.

    Args:
        acoustics: The stages.
        mel: The mel stream of the utterance.
        check: Called between steps of the vocoder.
    """

    def __init__(self, acoustics: Acoustics, mel: MelStream, check: Check = never_cancelled) -> None:
        self._check = check
        self._acoustics = acoustics
        self._mel = mel
        self._settled = torch.empty(0, acoustics.bands, device=acoustics.device)
        """The last frames that were vocoded, kept as left context."""
        self._keep = max([acoustics.vocoder.shape.reach, *acoustics.windows.lengths])

    def push(self, codes: Array, latents: Array | None = None) -> Job[Tensor]:
        """Add codes ``(n,)`` and, in 2.0, latents ``(n, width)``; return the samples that are final, possibly none."""
        chunks = yield from self._mel.push(codes, latents)
        return (yield from self._sound(chunks))

    def finish(self, codes: Array | None = None, latents: Array | None = None) -> Job[Tensor]:
        """Add the last codes, if any, and return all remaining samples."""
        chunks = [] if codes is None else (yield from self._mel.push(codes, latents))
        return (yield from self._sound(chunks + (yield from self._mel.finish())))

    def _sound(self, chunks: Iterable[MelChunk]) -> Job[Tensor]:
        per_frame, reach = self._acoustics.samples_per_frame, self._acoustics.vocoder.shape.reach
        pieces = [self._settled.new_empty(0)]
        for chunk in chunks:
            size, beyond = len(chunk.settled), len(chunk.expected)
            frames = torch.cat([self._settled, chunk.settled, chunk.expected])
            needed = min(len(self._settled), reach) + size + beyond
            window = self._acoustics.windows.fit(needed, len(frames))
            samples = yield from self._acoustics.sound(frames[-window:], self._check)
            first = (window - size - beyond) * per_frame
            pieces.append(samples[first : first + size * per_frame])
            self._settled = torch.cat([self._settled, chunk.settled])[-self._keep :]
        return torch.cat(pieces)


SHORTEST = 100
GROWTH = 1.4
"""The shortest recorded length of a segment in frames, and the ratio between consecutive recorded lengths."""


def solved_lengths(acoustics: Acoustics, pace: Pace, longest: int, duration_factor: float = 1.0) -> list[int]:
    """Lengths in frames in which solves are recorded; arguments as for `record`."""
    if not pace.chunks:
        lengths = [SHORTEST]
        while lengths[-1] < longest * duration_factor:
            lengths.append(round(GROWTH * lengths[-1]))
        return lengths
    lengths = pace.lengths(pace.past)
    # The last solve includes the codes that the previous chunk only looked at.
    rests = {acoustics.frames(pace.code_look_ahead + 1, factor) for factor in (1.0, duration_factor)}
    return lengths + sorted(lengths[-1] + rest for rest in rests)


def record(
    acoustics: Acoustics, pace: Pace, reference_frames: int, longest: int, requests: int = 1,
    duration_factor: float = 1.0,
) -> None:  # fmt: skip
    """Record the solver and the vocoder in the shapes that a pace needs; without CUDA, run each once.

    Args:
        acoustics: The stages.
        pace: How utterances are split.
        reference_frames: Maximum number of frames of a reference.
        longest: Frames of the longest segment that is solved at once, and vocoded in at most two windows.
        requests: Maximum number of requests whose solves and windows run as one batch.
        duration_factor: The largest factor on the natural duration whose solves are recorded.
    """
    for target in solved_lengths(acoustics, pace, longest, duration_factor):
        acoustics.flow.record(reference_frames, target, requests)
    for window in pace.lengths(acoustics.vocoder.shape.reach):
        acoustics.windows.record(window, requests)
    acoustics.windows.record_wholes(longest, requests)
