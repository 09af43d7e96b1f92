"""The bounded buffers between the tasks of a stream: samples before the encoder, bytes after it.

TCP gives no back-pressure at Opus rates, and the engine never waits for a reader, so unsent bytes are limited here, per
stream and in total. Sent bytes are kept for a while, so that a reader can resume after a disconnect.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from streaming_server.domain import IntSamples
from streaming_server.errors import ReaderTooSlow, StreamNotFound
from streaming_server.speech.timeline import Passage

_READ_BYTES = 65536
"""Maximum number of bytes per read; bytes that were read count as sent."""


@dataclass(frozen=True, slots=True)
class ByteLimits:
    """Limits on the bytes that streams hold."""

    unsent_stream: int
    unsent_total: int
    kept: int
    """Maximum number of sent bytes that are kept, of all streams."""

    @classmethod
    def of(cls, total: int) -> ByteLimits:
        """Return the limits for a total: a stream may hold a quarter of it, and kept bytes another eighth."""
        return cls(total // 4, total, total // 8)


class ByteBudget:
    """The bytes of all streams."""

    def __init__(self, limits: ByteLimits) -> None:
        self.limits = limits
        self.unsent_bytes = 0
        """Encoded bytes that are not sent yet."""
        self.kept_bytes = 0
        """Sent bytes that are kept."""
        self._buffers: dict[StreamBuffer, None] = {}  # an ordered set, oldest first

    def count(self, buffer: StreamBuffer, unsent: int, kept: int) -> None:
        """Add to the totals; discarded buffers do not count."""
        if buffer in self._buffers:
            self.unsent_bytes += unsent
            self.kept_bytes += kept

    def open(self) -> StreamBuffer:
        """Create the buffer of a new stream."""
        buffer = StreamBuffer(self)
        self._buffers[buffer] = None
        return buffer

    def discard(self, buffer: StreamBuffer) -> None:
        """Remove a stream."""
        self.count(buffer, -buffer.unsent_bytes, -buffer.kept_bytes)
        self._buffers.pop(buffer, None)

    def enforce(self) -> None:
        """Abort the stream with the most unsent bytes, and drop the oldest kept bytes, if a limit is exceeded."""
        if self.unsent_bytes > self.limits.unsent_total:
            max(self._buffers, key=lambda buffer: buffer.unsent_bytes).abort("unsent audio has reached its limit")
        excess = self.kept_bytes - self.limits.kept
        for buffer in self._buffers:
            if excess <= 0:
                break
            excess -= buffer.kept_bytes
            buffer.forget_sent()


class StreamBuffer:
    """The bytes of one encoder, read by one reader after another."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._held = bytearray()
        self._changed = asyncio.Event()
        self._sent = 0
        self._passages: deque[tuple[int, Passage]] = deque()
        """Each with the number of bytes that had been encoded at its end."""
        self.first = 0
        """Position of the first byte that is held."""
        self.ended = False
        self.error: BaseException | None = None
        """The error that ended the stream; None while it runs and after a normal end."""
        self.on_abort: set[Callable[[], None]] = set()
        """Called when the stream is aborted, because a reader may be waiting in a send."""

    @property
    def size(self) -> int:
        """Number of bytes encoded so far."""
        return self.first + len(self._held)

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    @property
    def unsent_bytes(self) -> int:
        return self.size - self._sent

    @property
    def kept_bytes(self) -> int:
        return self._sent - self.first

    @property
    def passages(self) -> Sequence[Passage]:
        """The passages that `read_timed` has not returned yet."""
        return [passage for _, passage in self._passages]

    def push(self, piece: bytes) -> None:
        """Add bytes without waiting.

        Raises:
            ReaderTooSlow: the stream is aborted.
        """
        if piece and not self.ended:
            self._held += piece
            self._budget.count(self, len(piece), 0)
            self._changed.set()
            if self.unsent_bytes > self._budget.limits.unsent_stream:
                self.abort(f"the reader is {self.unsent_bytes} bytes behind")
            self._budget.enforce()
        if isinstance(self.error, ReaderTooSlow):
            raise self.error

    def push_passage(self, passage: Passage) -> None:
        """Add a passage whose audio has been pushed, for `read_timed`."""
        self._passages.append((self.size, passage))
        self._changed.set()

    def end(self, error: BaseException | None = None) -> None:
        """End the stream; readers get the error after the last byte."""
        if not self.ended:
            self.ended, self.error = True, error
            self._changed.set()

    def abort(self, why: str) -> None:
        """Drop all bytes; reader and writer get `ReaderTooSlow`."""
        self._budget.count(self, -self.unsent_bytes, -self.kept_bytes)
        self.first = self._sent = self.size
        self._held.clear()
        self._passages.clear()
        self.ended, self.error = True, ReaderTooSlow(why)
        self._changed.set()
        for callback in tuple(self.on_abort):
            callback()

    def forget_sent(self) -> None:
        """Drop the sent bytes."""
        self._budget.count(self, 0, -self.kept_bytes)
        del self._held[: self.kept_bytes]  # does not move bytes: a bytearray only advances its start
        self.first = self._sent

    async def read(self, position: int) -> bytes:
        """Wait for bytes at a position and return them; empty at the end.

        Raises:
            StreamNotFound: the bytes are no longer held.
            BaseException: the error that ended the stream.
        """
        if position < self.first:
            raise self.error or StreamNotFound
        while position >= self.size:
            if self.ended:
                if self.error is not None:
                    raise self.error
                return b""
            self._changed.clear()
            await self._changed.wait()
        return self._piece(position, _READ_BYTES)

    async def read_timed(self, position: int) -> tuple[bytes, Passage | None]:
        """As `read`, for the only reader, with the passage whose audio ends with these bytes.

        The bytes may be empty where there is a passage: it was complete only after its last byte had been read.
        """
        while position >= self.size and not self._passages and not self.ended:
            self._changed.clear()
            await self._changed.wait()
        if not self._passages:
            return await self.read(position), None
        end, passage = self._passages[0]
        piece = self._piece(position, min(end - position, _READ_BYTES)) if position < end else b""
        if position + len(piece) < end:
            return piece, None
        self._passages.popleft()
        return piece, passage

    async def timed(self) -> AsyncIterator[tuple[bytes, Passage | None]]:
        """Yield all that `read_timed` returns, from the first byte on."""
        position = 0
        while True:
            piece, passage = await self.read_timed(position)
            if not piece and passage is None:
                return
            position += len(piece)
            yield piece, passage

    def _piece(self, position: int, max_bytes: int) -> bytes:
        """Bytes that are held, which count as sent from now on."""
        with memoryview(self._held) as held:
            start = position - self.first
            piece = bytes(held[start : start + max_bytes])
        if (newly_sent := position + len(piece) - self._sent) > 0:
            self._budget.count(self, -newly_sent, newly_sent)
            self._sent += newly_sent
        return piece

    async def complete(self) -> int:
        """Wait for the end without reading and return the number of bytes.

        Raises:
            BaseException: the error that ended the stream.
        """
        while not self.ended:
            self._changed.clear()
            await self._changed.wait()
        if self.error is not None:
            raise self.error
        return self.size


class SampleQueue:
    """The samples between a synthesis and its encoder."""

    def __init__(self, limit: int) -> None:
        """``limit``: number of samples above which the synthesis waits for its encoder."""
        self._limit = limit
        self._chunks: deque[IntSamples | Passage] = deque()
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()

    @property
    def size(self) -> int:
        """Number of samples held."""
        return self._size

    @property
    def held_bytes(self) -> int:
        return self._size * 2

    async def put(self, samples: IntSamples) -> None:
        """Add samples; waits while the queue is above its limit."""
        if not samples.size:
            return
        while self._size > self._limit:
            self._drained.clear()
            await self._drained.wait()
        self._chunks.append(samples)
        self._size += samples.size
        self._filled.set()

    def put_passage(self, passage: Passage) -> None:
        """Add a passage behind its samples."""
        self._chunks.append(passage)
        self._filled.set()

    def end(self, error: BaseException | None = None) -> None:
        """End the queue; ``take`` raises the error after the last sample."""
        if not self._ended:
            self._ended, self._error = True, error
            self._filled.set()

    async def take(self, max_samples: int, timeout_s: float) -> IntSamples | Passage | None:
        """1 to ``max_samples`` samples, or a passage behind its samples; no samples at the end; None after the time.

        Raises:
            BaseException: the error that ended the queue, once all samples are taken.
        """
        while not self._chunks:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return np.empty(0, np.int16)
            self._filled.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._filled.wait()
            except TimeoutError:
                return None
        taken: list[IntSamples] = []
        missing = max_samples
        while self._chunks and missing:
            chunk = self._chunks.popleft()
            if isinstance(chunk, Passage):
                if not taken:
                    return chunk
                self._chunks.appendleft(chunk)
                break
            if chunk.size > missing:
                self._chunks.appendleft(chunk[missing:])
                chunk = chunk[:missing]
            taken.append(chunk)
            missing -= chunk.size
        self._size -= max_samples - missing
        self._drained.set()
        return np.concatenate(taken)
