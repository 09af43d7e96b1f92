"""The slot of the engine: first come, first served, with live requests before jobs."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from streaming_server.errors import QueueFull, QueueTimeout
from streaming_server.speech.priority_semaphore import PrioritySemaphore

_DECAY = 0.8
"""Weight of all earlier syntheses relative to the latest one in the measured speed."""


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """A request that holds the slot."""

    text: str
    """Empty if the slot does not show texts."""
    reference_audio_index: int | None
    """None if the voice is not a file of the reference folder."""
    start_time_s: float
    """UNIX time at which the slot was entered."""


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """The slot at one moment."""

    holders: tuple[SlotHolder, ...]
    """The one that entered first is the first."""
    waiting: tuple[str, ...]
    """Ids of the waiting requests, the next one first."""
    capacity: int
    """The most holders at a time."""
    is_open: bool
    """Whether one more holder has room now."""

    @property
    def holder(self) -> SlotHolder | None:
        """The request that has held the slot longest."""
        return self.holders[0] if self.holders else None


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """A waiting request."""

    priority: int
    """The lowest value enters first."""
    request_id: str
    batch: bool
    characters: int


@dataclass(slots=True, eq=False)
class _Holding:
    """A holder, and what its remaining time is estimated from."""

    holder: SlotHolder
    characters: int
    entered_s: float
    """On the monotonic clock."""


class Slot:
    """A FIFO queue with a bounded number of waiting requests, and one holder or a few."""

    def __init__(
        self,
        max_waiting: int,
        timeout_s: float,
        *,
        live_first: bool = True,
        shows_text: bool = True,
        capacity: int = 1,
        has_room: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """
        Args:
            max_waiting: most live requests that may wait; with 0 a request enters only when the slot is free.
            timeout_s: their longest wait.
            live_first: a waiting live request enters before a waiting job; else both enter by arrival.
            shows_text: whether ``status`` includes the text.
            capacity: the most holders at a time.
            has_room: whether one more request can be synthesised beside the given number without gaps in any.
        """
        self._semaphore = PrioritySemaphore(capacity, has_room)
        self._capacity = capacity
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._batch_priority = 1 if live_first else 0
        self._shows_text = shows_text
        self._holdings: list[_Holding] = []
        self.last_entered_s: float | None = None
        """UNIX time of the latest entry."""
        self._waiting: list[_Ticket] = []
        self._speed = _Speed()
        self._changed = asyncio.Event()

    def status(self) -> SlotStatus:
        """The holders and the waiting requests; returns at once."""
        holders = tuple(holding.holder for holding in self._holdings)
        waiting = tuple(ticket.request_id for ticket in self._waiting)
        is_open = self._semaphore.is_open if self._capacity > 1 else not holders
        return SlotStatus(holders, waiting, self._capacity, is_open)

    @property
    def accepted(self) -> int:
        """The number of holders that could be there now, at least 1."""
        active = len(self._holdings)
        return self._capacity if not active or self._semaphore.has_room else active

    def reconsider(self) -> None:
        """Let the next request in if there is room by now; the speed of the holders was measured again."""
        self._semaphore.admit()

    async def change(self) -> None:
        """Wait for the next status change."""
        await self._changed.wait()

    @property
    def position_of_newcomer(self) -> int:
        """Position of a live request that arrives now; 0 if it enters immediately."""
        return 0 if self._semaphore.is_open else sum(ticket.priority == 0 for ticket in self._waiting) + 1

    def expected_wait_s(self, position: int) -> float:
        """Estimate the wait at a position from the number of characters before it and the measured speed."""
        if position == 0:
            return 0.0
        speed, now_s = self._speed.s_per_character, time.monotonic()
        ahead_s = sum(ticket.characters for ticket in self._waiting[: position - 1]) * speed / self.accepted
        left_s = [holding.characters * speed - (now_s - holding.entered_s) for holding in self._holdings]
        return ahead_s + max(0.0, min(left_s, default=0.0))

    def check_wait(self, max_s: float) -> None:
        """Refuse a live request whose client would give up while it waits.

        Raises:
            QueueTimeout: the expected wait is longer than ``max_s``, by a speed that has been measured.
        """
        if self._speed.is_measured and self.expected_wait_s(self.position_of_newcomer) > max_s:
            raise QueueTimeout(max_s)

    @asynccontextmanager
    async def enter(
        self,
        text: str,
        reference_audio_index: int | None,
        request_id: str = "",
        *,
        batch: bool = False,
        is_admitted: bool = False,
    ) -> AsyncIterator[None]:
        """Hold the slot for the body of the ``with``.

        Args:
            text: the text to synthesise.
            reference_audio_index: index of the voice.
            request_id: identifies the request in the queue.
            batch: a job, to which the limits do not apply.
            is_admitted: a later segment of a text that has held the slot before, which a full queue does not reject.

        Raises:
            QueueFull: the queue holds ``max_waiting`` live requests.
            QueueTimeout: the slot was not free within ``timeout_s``.
        """
        if not self._semaphore.is_open:
            if not (batch or is_admitted) and sum(not other.batch for other in self._waiting) >= self._max_waiting:
                raise QueueFull(self._max_waiting)
            await self._wait(_Ticket(self._batch_priority if batch else 0, request_id, batch, len(text)))
        else:
            await self._semaphore.acquire()
        self.last_entered_s = time.time()
        holder = SlotHolder(text if self._shows_text else "", reference_audio_index, self.last_entered_s)
        holding = _Holding(holder, len(text), time.monotonic())
        self._holdings.append(holding)
        self._notify()
        try:
            yield
            self._speed.add(len(text), time.monotonic() - holding.entered_s)  # of completed texts only
        finally:
            self._holdings.remove(holding)
            self._semaphore.release()
            self._notify()

    async def _wait(self, ticket: _Ticket) -> None:
        insort(self._waiting, ticket, key=lambda waiting: waiting.priority)
        self._notify()
        try:
            async with asyncio.timeout(None if ticket.batch else self._timeout_s):
                await self._semaphore.acquire(ticket.priority)
        except TimeoutError:
            raise QueueTimeout(self._timeout_s) from None
        finally:
            self._waiting.remove(ticket)
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Speed:
    """Seconds of synthesis per character of recent texts, weighted by length."""

    def __init__(self) -> None:
        self._characters = 50.0  # an assumption for the first syntheses
        self._seconds = 1.0
        self.is_measured = False
        """Whether a synthesis has been counted."""

    @property
    def s_per_character(self) -> float:
        return self._seconds / self._characters

    def add(self, characters: int, seconds: float) -> None:
        """Count a completed synthesis."""
        self._characters = _DECAY * self._characters + characters
        self._seconds = _DECAY * self._seconds + seconds
        self.is_measured = True
