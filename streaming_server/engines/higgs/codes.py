"""Codes on their way: the delay between codebooks put in and taken out, and audio decoded while codes still come.

Knows codes, shapes ``(codebooks, frames)``, and the codec; not the model that draws them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from streaming_server.domain import FloatSamples

CONTEXT_FRAMES = 10
"""On each side of what is decoded: with as many, not with fewer, the codec's output is that of decoding the whole."""
_LARGEST_CHUNK = 32


def delayed(codes: Tensor, begin: int, end: int) -> Tensor:
    """Codes as the model reads them: marks around them, codebook i later by i frames.

    ``(C, F)`` → ``(F + C + 1, C)``
    """
    count, frames = codes.shape
    out = torch.full((frames + count + 1, count), end, dtype=codes.dtype, device=codes.device)
    for index in range(count):
        out[: index + 1, index] = begin
        out[index + 1 : index + 1 + frames, index] = codes[index]
    return out


class Undelayed:
    """Frames as the model draws them, to frames as the codec takes them."""

    def __init__(self, codebooks: int, begin: int, end: int) -> None:
        self._drawn: deque[Tensor] = deque(maxlen=codebooks)
        self._begin = begin
        self._end = end
        self.ended = False
        """Whether the model has said so."""

    def push(self, frame: Tensor) -> Tensor | None:
        """Take a drawn frame, ``(C,)``; give the one that it completes, ``(C,)``, if it does."""
        if self.ended or bool((frame == self._begin).all()):
            return None
        self._drawn.append(frame)
        if len(self._drawn) < frame.numel():
            return None
        whole = torch.stack([drawn[index] for index, drawn in enumerate(self._drawn)])
        # Marks of an end that came too early for the later codebooks stay behind; they are no sound.
        self.ended = bool(whole[0] == self._end)
        return None if self.ended else whole.clamp(max=self._begin - 1)


class ChunkDecoder:
    """The codec, fed frame by frame: small pieces first, so that something is heard early."""

    def __init__(self, codec: nn.Module, device: torch.device, look_ahead: int = CONTEXT_FRAMES) -> None:
        """``look_ahead``: frames known beyond a chunk; with fewer than `CONTEXT_FRAMES` it only resembles the whole."""
        self._codec = codec
        self._device = device
        self._look_ahead = min(look_ahead, CONTEXT_FRAMES)
        self._frames: list[Tensor] = []
        self._given = 0
        self._sizes = _sizes()
        self._size = next(self._sizes)

    @property
    def codes(self) -> Tensor:
        """All that came, ``(C, F)``."""
        return torch.stack(self._frames, dim=1)

    @property
    def count(self) -> int:
        return len(self._frames)

    def push(self, frame: Tensor) -> FloatSamples | None:
        """Take a frame, ``(C,)``; give samples, ``(n,)``, once they are enough and settled."""
        self._frames.append(frame)
        if len(self._frames) < self._given + self._size + self._look_ahead:
            return None
        samples = self._decode(self._given + self._size)
        self._size = next(self._sizes)
        return samples

    def finish(self) -> FloatSamples:
        """Give the rest."""
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
