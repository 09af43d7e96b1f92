"""A semaphore that serves the lowest priority value first, and equal ones in the order of arrival."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count


class PrioritySemaphore:
    """At most ``capacity`` holders at a time.

    Args:
        capacity: The number of places.
        has_room: Whether one more caller may enter beside the given number of holders. It is asked when a caller
            arrives, when a holder leaves and in ``admit``. The first holder always enters.
    """

    def __init__(self, capacity: int, has_room: Callable[[int], bool] = lambda _: True) -> None:
        self._capacity = capacity
        self._has_room = has_room
        self._held = 0
        self._arrivals = count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    @property
    def is_open(self) -> bool:
        """Whether ``acquire`` would return at once."""
        return not self._waiting and self.has_room

    @property
    def has_room(self) -> bool:
        """Whether one more holder may enter."""
        return self._held < self._capacity and (not self._held or self._has_room(self._held))

    @property
    def waiting(self) -> int:
        """The number of waiting callers."""
        return len(self._waiting)

    async def acquire(self, priority: float = 0.0) -> None:
        """Wait for a place; a cancelled caller leaves the queue at once."""
        if self.is_open:
            self._held += 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (priority, next(self._arrivals), granted)
        heapq.heappush(self._waiting, entry)
        self.admit()
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
        self._held -= 1
        self.admit()

    def admit(self) -> None:
        """Let callers in while there is room; to be called where there may be more of it than before."""
        while self._waiting and self.has_room:
            granted = heapq.heappop(self._waiting)[2]
            if not granted.done():  # a caller that was cancelled just now is still in the queue
                self._held += 1
                granted.set_result(None)
