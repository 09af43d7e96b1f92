"""From codes to sound while the codes still come: a stream of mel, vocoded as it settles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.chunks import MelChunk, MelStream, Pace
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.arrays import Array


class Synthesis:
    """The sound of one utterance: of each chunk with what is before it as left context and what is expected as right.

    Args:
        acoustics: The stages.
        mel: The utterance's.
        check: Called between pieces of the vocoder's work.
    """

    def __init__(self, acoustics: Acoustics, mel: MelStream, check: Check = never_cancelled) -> None:
        self._check = check
        self._acoustics = acoustics
        self._mel = mel
        self._settled = torch.empty(0, acoustics.bands, device=acoustics.device)
        """The last frames whose sound has been given out, as many as the vocoder may look back at."""
        self._keep = max([acoustics.vocoder.shape.reach, *acoustics.windows.lengths])

    def push(self, codes: Array, latents: Array | None = None) -> Tensor:
        """Codes ``(n,)``, in 2.0 with their latents ``(n, width)`` → the samples that are now settled, perhaps none."""
        return self._sound(self._mel.push(codes, latents))

    def finish(self, codes: Array | None = None, latents: Array | None = None) -> Tensor:
        """The last codes, if there are any, and all samples that are left."""
        settled = self._sound(self._mel.push(codes, latents)) if codes is not None else self._settled.new_empty(0)
        return torch.cat([settled, self._sound(self._mel.finish())])

    def _sound(self, chunks: Iterable[MelChunk]) -> Tensor:
        return torch.cat([self._settled.new_empty(0), *self._vocoded(chunks)])

    def _vocoded(self, chunks: Iterable[MelChunk]) -> Iterator[Tensor]:
        per_frame, reach = self._acoustics.samples_per_frame, self._acoustics.vocoder.shape.reach
        for chunk in chunks:
            size, beyond = len(chunk.settled), len(chunk.expected)
            frames = torch.cat([self._settled, chunk.settled, chunk.expected])
            least = min(len(self._settled), reach) + size + beyond
            window = self._acoustics.windows.fit(least, len(frames))
            samples = self._acoustics.sound(frames[-window:], self._check)
            first = (window - size - beyond) * per_frame
            yield samples[first : first + size * per_frame]
            self._settled = torch.cat([self._settled, chunk.settled])[-self._keep :]


SHORTEST = 100
GROWTH = 1.4
"""The recorded lengths of whole utterances in frames: the first, and from one to the next."""


def record(acoustics: Acoustics, pace: Pace, reference_frames: int, longest: int) -> None:
    """Record the solves and the vocoder in the shapes that a pace needs; without CUDA, run each once.

    Args:
        acoustics: The stages.
        pace: Where utterances will be cut.
        reference_frames: Most frames of the references that will be used.
        longest: Frames of the longest utterance that is worth it, where it is solved as a whole.
    """
    if pace.chunks:
        targets = pace.lengths(pace.past)
        targets.append(targets[-1] + acoustics.frames(pace.code_look_ahead + 1))  # the last has what was kept back
    else:
        targets = [SHORTEST]
        while targets[-1] < longest:
            targets.append(round(GROWTH * targets[-1]))
    for target in targets:
        acoustics.flow.record(reference_frames, target)
    for window in pace.lengths(acoustics.vocoder.shape.reach):
        acoustics.windows.record(window)
