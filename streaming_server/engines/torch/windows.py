"""Runs a vocoder in recorded windows of fixed lengths: a whole utterance, or chunks as their frames arrive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.activation import fuse_activations
from streaming_server.engines.torch.arrays import Array, take
from streaming_server.engines.torch.graphs import Graphs
from streaming_server.engines.torch.pieces import Job, Piece, batch_size, batch_sizes, result_of
from streaming_server.engines.torch.vocoder import Generator, GeneratorShape

MAX_BATCH = 8
"""Maximum number of windows that run as one batch."""
MAX_BATCH_FRAMES = 800
"""Maximum number of frames of a batch of several windows. One long window keeps a GPU busy by itself."""
GROWTH = 1.25
"""Ratio of two recorded lengths for wholes: larger ones need fewer graphs and compute more frames twice."""


@dataclass(frozen=True, slots=True)
class Window:
    """A recorded window of a longer sequence, and the frames whose samples are taken from it."""

    start: int
    length: int
    first: int
    end: int


def cover(length: int, recorded: Sequence[int], reach: int) -> list[Window]:
    """Windows of one recorded length that give the exact samples of ``length`` frames; empty if there are none.

    Each frame is taken from a window in which ``reach`` frames, or the end of the sequence, are on either side of it.
    Of the recorded lengths the one with the fewest frames in all is taken.
    """
    counts = {
        size: 1 + math.ceil((length - size) / (size - 2 * reach))
        for size in recorded
        if size < length and size > 2 * reach
    }
    if length in recorded:
        counts[length] = 1
    if not counts:
        return []
    size = min(counts, key=lambda size: (counts[size] * size, counts[size]))
    starts = [min(index * (size - 2 * reach), length - size) for index in range(counts[size])]
    ends = [*(start + size - reach for start in starts[:-1]), length]
    return [Window(start, size, first, end) for start, first, end in zip(starts, [0, *ends[:-1]], ends, strict=True)]


def whole_lengths(recorded: Sequence[int], reach: int, longest: int) -> list[int]:
    """Lengths to record beside ``recorded`` for at most two windows, of at most twice the frames, up to ``longest``."""
    sizes = set(recorded)
    for length in range(1, longest + 1):
        near = [size for size in sizes if length / GROWTH < size <= length]
        if not any(size == length or length <= 2 * (size - reach) for size in near):
            sizes.add(length)
    return sorted(sizes - set(recorded))


@dataclass(slots=True, eq=False)
class Request:
    """The input of a recorded window, and its samples after it has run."""

    frames: Tensor
    voice: tuple[Tensor, ...]
    samples: Tensor | None = None


class Windows:
    """Runs the generator for a few fixed lengths, each with static buffers and, on CUDA, recorded graphs.

    Windows of equal length run as one batch, if they are requested by jobs that run together.
    """

    def __init__(self, generator: Generator, *voice_widths: int) -> None:
        self._generator = generator
        self._reach = generator.shape.reach
        weight = generator.conv_post.weight
        self._graphs = Graphs(weight.device)
        self._voice = [weight.new_zeros(MAX_BATCH, width) for width in voice_widths]
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        """By length: frames ``(batch, length, width)`` and samples ``(batch, n)``."""

    @property
    def lengths(self) -> list[int]:
        return sorted(self._buffers)

    def fit(self, needed: int, available: int) -> int:
        """Return the shortest recorded length from ``needed`` to ``available``, or ``needed`` if there is none.

        A longer left context does not change the result, and a recorded graph is one launch instead of a thousand.
        """
        return next((size for size in self.lengths if needed <= size <= available), needed)

    def record(self, length: int, requests: int = 1, *, searches: bool = True) -> None:
        """Allocate buffers and, on CUDA, record graphs for this length; does nothing if it is already recorded.

        Args:
            length: Frames of the window.
            requests: Maximum number of requests whose windows run as one batch.
            searches: As for `Graphs.record`, for one window; batches of several never search.
        """
        if length in self._buffers:
            return
        if not self._buffers:
            fuse_activations(self._generator)
        shape = self._generator.shape
        weight = self._generator.conv_post.weight
        sizes = batch_sizes(min(requests, MAX_BATCH, max(1, MAX_BATCH_FRAMES // length)))
        self._buffers[length] = (
            weight.new_zeros(sizes[-1], length, shape.frame_width),
            weight.new_zeros(sizes[-1], length * shape.samples_per_frame),
        )
        for size in sizes:
            self._graphs.record((length, size), partial(self._fill, length, size), searches=searches and size == 1)

    def record_wholes(self, longest: int, requests: int = 1) -> None:
        """Record what is missing for any number of frames up to ``longest`` to be run in at most two windows."""
        for length in whole_lengths(self.lengths, self._reach, longest):
            self.record(length, requests, searches=False)

    def vocode(self, frames: Tensor, *voice: Tensor, check: Check = never_cancelled) -> Job[Tensor]:
        """Frames ``(n, width)`` and, in 1.5, the speaker embedding → samples ``(n · samples_per_frame,)``.

        A number of frames that is not recorded is run in recorded windows, whose samples are exact where they are used.
        """
        length = frames.shape[0]
        windows = [Window(0, length, 0, length)]
        if length not in self._buffers:
            windows = cover(length, self.lengths, self._reach)
        rate, pieces = self._generator.shape.samples_per_frame, []
        for window in windows or [Window(0, length, 0, length)]:
            check()
            request = Request(frames[window.start : window.start + window.length], voice)
            if windows:
                buffer, _ = self._buffers[window.length]
                run = partial(self._run, window.length)
                yield Piece(("window", window.length), request, run, len(buffer))
            else:
                yield Piece(None, request, partial(self._run_unrecorded, check))
            assert request.samples is not None
            pieces.append(request.samples[(window.first - window.start) * rate : (window.end - window.start) * rate])
        return torch.cat(pieces)

    def _run_unrecorded(self, check: Check, requests: Sequence[Request]) -> None:
        [request] = requests
        voice = (embedding[None] for embedding in request.voice)
        request.samples = self._generator(request.frames[None], *voice, check=check)[0]

    def _run(self, length: int, requests: Sequence[Request]) -> None:
        """Run recorded windows of one length."""
        frames, samples = self._buffers[length]
        for index, request in enumerate(requests):
            frames[index] = request.frames
            for buffer, embedding in zip(self._voice, request.voice, strict=True):
                buffer[index] = embedding
        size = batch_size(len(requests))
        self._graphs.run((length, size), partial(self._fill, length, size))
        for index, request in enumerate(requests):
            request.samples = samples[index].clone()

    def _fill(self, length: int, size: int) -> None:
        frames, samples = self._buffers[length]
        samples[:size].copy_(self._generator(frames[:size], *(buffer[:size] for buffer in self._voice)))


class ChunkedVocoder:
    """Vocodes latents incrementally: each push returns the samples of all codes followed by ``look_ahead`` codes.

    Every chunk is vocoded with at least ``reach`` codes of left context and ``look_ahead`` codes of right context. With
    ``look_ahead == reach`` the samples equal those of vocoding all latents at once.
    """

    def __init__(
        self, windows: Windows, speaker: Tensor, shape: GeneratorShape, look_ahead: int, check: Check = never_cancelled
    ) -> None:
        self._windows = windows
        self._check = check
        self._speaker = speaker
        self._samples_per_code = shape.samples_per_frame
        self._reach = shape.reach
        self._look_ahead = look_ahead
        self._keep = max([shape.reach, *windows.lengths])
        self._latents = speaker.new_empty(0, shape.frame_width)
        self._emitted = 0
        """Number of codes at the front of ``_latents`` whose samples have been returned."""

    def push(self, latents: Array) -> Tensor:
        """Add latents ``(n, width)`` and return the samples that are final, possibly none; float32."""
        return result_of(self.pushed(latents))

    def finish(self, latents: Array | None = None) -> Tensor:
        """Add the last latents, if any, return all remaining samples, and reset the vocoder."""
        return result_of(self.finished(latents))

    def pushed(self, latents: Array) -> Job[Tensor]:
        """``push`` as a job."""
        self._take(latents)
        return (yield from self._emit(self._latents.shape[0] - self._look_ahead))

    def finished(self, latents: Array | None = None) -> Job[Tensor]:
        """``finish`` as a job."""
        if latents is not None:
            self._take(latents)
        samples = yield from self._emit(self._latents.shape[0])
        self._latents, self._emitted = self._latents[:0], 0
        return samples

    def _take(self, latents: Array) -> None:
        more = take(latents, 2, self._latents.device, self._latents.dtype)
        self._latents = torch.cat([self._latents, more])

    def _emit(self, ready: int) -> Job[Tensor]:
        """Return the samples of the codes from ``_emitted`` to ``ready``."""
        if ready <= self._emitted:
            return self._speaker.new_empty(0, dtype=torch.float32)
        length = self._latents.shape[0]
        needed = length - max(0, self._emitted - self._reach)
        first = length - self._windows.fit(needed, length)
        samples = yield from self._windows.vocode(self._latents[first:], self._speaker, check=self._check)
        end = None if ready == length else (ready - first) * self._samples_per_code
        chunk = samples[(self._emitted - first) * self._samples_per_code : end]
        dropped = max(0, ready - self._keep)
        self._latents = self._latents[dropped:]
        self._emitted = ready - dropped
        return chunk.float()
