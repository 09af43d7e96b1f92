"""A limited number of turns, given to the lowest priority value first and in arrival order among equals.

Knows neither what a turn is for nor how long one should wait.
"""

from __future__ import annotations

import asyncio
import heapq
from itertools import count


class PrioritySemaphore:
    """At most ``capacity`` turns at a time."""

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._arrivals = count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    @property
    def is_open(self) -> bool:
        """Whether a turn could be had at once."""
        return self._free > 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def acquire(self, priority: float = 0.0) -> None:
        """Wait for a turn; cancelling gives the place up at once."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (priority, next(self._arrivals), turn)
        heapq.heappush(self._waiting, entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # the turn came in the same moment: it goes to the next
            elif entry in self._waiting:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise

    def release(self) -> None:
        """Give the turn to the next."""
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():  # one that was cancelled a moment ago has not left the queue yet
                turn.set_result(None)
                return
        self._free += 1
