"""A semaphore that serves the lowest priority value first, and equal ones in the order of arrival."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count


class PrioritySemaphore:
    """At most ``capacity`` holders at a time."""

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._arrivals = count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    @property
    def is_open(self) -> bool:
        """Whether ``acquire`` would return at once."""
        return self._free > 0

    @property
    def waiting(self) -> int:
        """The number of waiting callers."""
        return len(self._waiting)

    async def acquire(self, priority: float = 0.0) -> None:
        """Wait for a place; a cancelled caller leaves the queue at once."""
        if self._free:
            self._free -= 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (priority, next(self._arrivals), granted)
        heapq.heappush(self._waiting, entry)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release()  # it was granted in the same moment: the next caller gets it
            elif entry in self._waiting:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise

    def release(self) -> None:
        """Free one place, for the next caller."""
        while self._waiting:
            granted = heapq.heappop(self._waiting)[2]
            if not granted.done():  # a caller that was cancelled just now is still in the queue
                granted.set_result(None)
                return
        self._free += 1
