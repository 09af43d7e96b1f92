"""The one slot in which synthesis happens, and who is in it: first come, first served, live requests before jobs.

Knows no engine: whoever wants the device enters the slot first, live or batch.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from streaming_server.errors import QueueFull, QueueTimeout
from streaming_server.speech.priority_semaphore import PrioritySemaphore


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """Whoever holds the slot."""

    text: str
    reference_audio_index: int | None
    """None for a voice that is no file of the reference folder."""
    start_time_s: float
    """UNIX time at which the slot was entered."""


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """The slot at one moment."""

    holder: SlotHolder | None
    waiting: tuple[str, ...]
    """Ids of the requests that wait, the next one first."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """Somebody who waits."""

    priority: int
    """The least goes first."""
    request_id: str
    batch: bool


class Slot:
    """A FIFO of one holder and a bounded number who wait."""

    def __init__(self, max_waiting: int, timeout_s: float, *, live_first: bool = True) -> None:
        """
        Args:
            max_waiting: most live requests that may wait; 0 lets in only when the slot is free.
            timeout_s: their longest wait.
            live_first: a live request that waits goes before a job that waits; else they take turns by arrival.
        """
        self._turnstile = PrioritySemaphore(1)
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._batch_priority = 1 if live_first else 0
        self._holder: SlotHolder | None = None
        self.last_entered_s: float | None = None
        """UNIX time at which anybody last came in."""
        self._waiting: list[_Ticket] = []
        self._average_hold_s = 1.0
        self._changed = asyncio.Event()

    def status(self) -> SlotStatus:
        """Who holds the slot and who waits; never waits itself."""
        return SlotStatus(self._holder, tuple(ticket.request_id for ticket in self._waiting))

    async def change(self) -> None:
        """Wait until the status is another."""
        await self._changed.wait()

    @property
    def position_of_newcomer(self) -> int:
        """The place that a live request would have if it came now; 0 where it would enter at once."""
        return 0 if self._turnstile.is_open else sum(ticket.priority == 0 for ticket in self._waiting) + 1

    def expected_wait_s(self, position: int) -> float:
        """A guess, from recent holds, at how long somebody at this place waits."""
        return position * self._average_hold_s

    @asynccontextmanager
    async def enter(
        self, text: str, reference_audio_index: int | None, request_id: str = "", *, batch: bool = False
    ) -> AsyncIterator[None]:
        """Hold the slot for the body of the ``with``.

        Args:
            text: what is said.
            reference_audio_index: in whose voice.
            request_id: names the request while it waits.
            batch: a job, which waits for as long as it takes and counts for no bound.

        Raises:
            QueueFull: as many wait as may.
            QueueTimeout: the slot did not come free in time.
        """
        if not self._turnstile.is_open:
            await self._wait(_Ticket(self._batch_priority if batch else 0, request_id, batch))
        else:
            await self._turnstile.acquire()
        entered_s = time.monotonic()
        self.last_entered_s = time.time()
        self._holder = SlotHolder(text, reference_audio_index, self.last_entered_s)
        self._tell()
        try:
            yield
        finally:
            self._holder = None
            self._average_hold_s += 0.2 * (time.monotonic() - entered_s - self._average_hold_s)
            self._turnstile.release()
            self._tell()

    async def _wait(self, ticket: _Ticket) -> None:
        if not ticket.batch and sum(not other.batch for other in self._waiting) >= self._max_waiting:
            raise QueueFull(self._max_waiting)
        insort(self._waiting, ticket, key=lambda waiting: waiting.priority)
        self._tell()
        try:
            async with asyncio.timeout(None if ticket.batch else self._timeout_s):
                await self._turnstile.acquire(ticket.priority)
        except TimeoutError:
            raise QueueTimeout(self._timeout_s) from None
        finally:
            self._waiting.remove(ticket)
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
