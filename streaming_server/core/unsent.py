"""Audio that is made but not sent yet: counted for each stream and in total, bounded both ways.

TCP holds no stream back at Opus rates, and the engine never waits for a reader, so the bytes are counted here.
Knows no encoder and no connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from streaming_server.errors import ReaderTooSlow

_READ_BYTES = 65536
"""A read stops here: what has been read is no longer counted."""


class UnsentBudget:
    """The bytes that all streams together may hold."""

    def __init__(self, stream_limit_bytes: int, total_limit_bytes: int) -> None:
        self.stream_limit_bytes = stream_limit_bytes
        self.total_limit_bytes = total_limit_bytes
        self._buffers: set[UnsentBuffer] = set()

    @property
    def total_bytes(self) -> int:
        """What is unsent now."""
        return sum(buffer.size_bytes for buffer in self._buffers)

    def open(self) -> UnsentBuffer:
        """A buffer for a new stream; close it when the stream ends."""
        buffer = UnsentBuffer(self)
        self._buffers.add(buffer)
        return buffer

    def discard(self, buffer: UnsentBuffer) -> None:
        """Forget a stream."""
        self._buffers.discard(buffer)

    def largest(self) -> UnsentBuffer:
        """The stream that holds most: the one to give up when the total is reached."""
        return max(self._buffers, key=lambda buffer: buffer.size_bytes)


class UnsentBuffer:
    """Bytes between one encoder and one reader."""

    def __init__(self, budget: UnsentBudget) -> None:
        self._budget = budget
        self._pieces: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None
        self.size_bytes = 0
        self.on_give_up: Callable[[], None] = lambda: None
        """Called when the stream is given up while its reader may be stuck in a send."""

    def push(self, piece: bytes) -> None:
        """Add bytes; never waits.

        Raises:
            ReaderTooSlow: the stream was given up, now or earlier.
        """
        if piece and not self._ended:
            self._pieces.append(piece)
            self.size_bytes += len(piece)
            self._changed.set()
            if self.size_bytes > self._budget.stream_limit_bytes:
                self.give_up(f"the reader is {self.size_bytes} bytes behind")
            elif self._budget.total_bytes > self._budget.total_limit_bytes:
                self._budget.largest().give_up("unsent audio of all streams has reached its limit")
        if isinstance(self._error, ReaderTooSlow):
            raise self._error

    def end(self, error: BaseException | None = None) -> None:
        """No more comes; the reader is told of the error after what there is."""
        if not self._ended:
            self._ended, self._error = True, error
            self._changed.set()

    def give_up(self, why: str) -> None:
        """Drop what is unsent; reader and writer get `ReaderTooSlow`."""
        self._pieces.clear()
        self.size_bytes = 0
        self._ended, self._error = True, ReaderTooSlow(why)
        self._changed.set()
        self.on_give_up()

    async def read(self) -> bytes:
        """The next bytes, waiting for some; empty at the end.

        Raises:
            BaseException: what the stream ended with.
        """
        while not self._pieces:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return b""
            self._changed.clear()
            await self._changed.wait()
        taken = [self._pieces.popleft()]
        size = len(taken[0])
        while self._pieces and size < _READ_BYTES:
            taken.append(self._pieces.popleft())
            size += len(taken[-1])
        self.size_bytes -= size
        return b"".join(taken)

    async def complete(self) -> int:
        """Wait for the end without reading; how many bytes there are.

        Raises:
            BaseException: what the stream ended with.
        """
        while not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        return self.size_bytes
