"""Applies and removes the delay pattern between codebooks, and decodes codes to audio incrementally.

Codes have the shape ``(codebooks, frames)``, abbreviated ``(C, F)``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from streaming_server.domain import FloatSamples

CONTEXT_FRAMES = 10
"""Context frames on each side of a chunk; the minimum for which the codec's output equals that of a full decoding."""
_LARGEST_CHUNK = 32


def delayed(codes: Tensor, begin: int, end: int) -> Tensor:
    """Add begin and end codes, and delay codebook i by i frames.

    ``(C, F)`` → ``(F + C + 1, C)``
    """
    count, frames = codes.shape
    out = torch.full((frames + count + 1, count), end, dtype=codes.dtype, device=codes.device)
    for index in range(count):
        out[: index + 1, index] = begin
        out[index + 1 : index + 1 + frames, index] = codes[index]
    return out


class Undelayed:
    """Converts delayed frames from the model to aligned frames for the codec."""

    def __init__(self, codebooks: int, begin: int, end: int) -> None:
        self._drawn: deque[Tensor] = deque(maxlen=codebooks)
        self._begin = begin
        self._end = end
        self.ended = False
        """Whether the model generated the end code."""

    def push(self, frame: Tensor) -> Tensor | None:
        """Add a generated frame, ``(C,)``; return the aligned frame that it completes, ``(C,)``, if any."""
        if self.ended or bool((frame == self._begin).all()):
            return None
        self._drawn.append(frame)
        if len(self._drawn) < frame.numel():
            return None
        aligned = torch.stack([drawn[index] for index, drawn in enumerate(self._drawn)])
        # Later codebooks can contain an early end code, which is not audio; the clamp removes it.
        self.ended = bool(aligned[0] == self._end)
        return None if self.ended else aligned.clamp(max=self._begin - 1)


class ChunkDecoder:
    """Decodes frames incrementally; the first chunks are small to reduce the latency."""

    def __init__(self, codec: nn.Module, device: torch.device, look_ahead: int = CONTEXT_FRAMES) -> None:
        """``look_ahead``: frames required after a chunk; the output is exact from `CONTEXT_FRAMES` on."""
        self._codec = codec
        self._device = device
        self._look_ahead = min(look_ahead, CONTEXT_FRAMES)
        self._frames: list[Tensor] = []
        self._given = 0
        self._sizes = _sizes()
        self._size = next(self._sizes)

    @property
    def codes(self) -> Tensor:
        """All frames so far, ``(C, F)``."""
        return torch.stack(self._frames, dim=1)

    @property
    def count(self) -> int:
        return len(self._frames)

    def push(self, frame: Tensor) -> FloatSamples | None:
        """Add a frame, ``(C,)``; return the samples, ``(n,)``, of a chunk that is complete, else None."""
        self._frames.append(frame)
        if len(self._frames) < self._given + self._size + self._look_ahead:
            return None
        samples = self._decode(self._given + self._size)
        self._size = next(self._sizes)
        return samples

    def finish(self) -> FloatSamples:
        """Return the remaining samples."""
        if self._given == len(self._frames):
            return np.empty(0, np.float32)
        return self._decode(len(self._frames))

    @torch.inference_mode()
    def _decode(self, until: int) -> FloatSamples:
        first = max(self._given - CONTEXT_FRAMES, 0)
        last = min(until + CONTEXT_FRAMES, len(self._frames))
        codes = torch.stack(self._frames[first:last], dim=1)[None].to(self._device)  # (1, C, F)
        audio = self._codec.decode(codes).audio_values[0, 0]  # type: ignore[operator]
        hop = audio.numel() // (last - first)
        samples: FloatSamples = audio[(self._given - first) * hop : (until - first) * hop].float().cpu().numpy()
        self._given = until
        return samples


def _sizes() -> Iterator[int]:
    size = 2
    while True:
        yield size
        size = min(size * 2, _LARGEST_CHUNK)
