"""The slot in which synthesis happens: one holder at a time, first come, first served, live requests before jobs."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from streaming_server.errors import QueueFull, QueueTimeout
from streaming_server.speech.priority_semaphore import PrioritySemaphore

_DECAY = 0.8
"""Weight of all earlier syntheses together against the latest one, in the measured speed."""


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """The request that holds the slot."""

    text: str
    """Empty where the slot does not show texts."""
    reference_audio_index: int | None
    """None for a voice that is no file of the reference folder."""
    start_time_s: float
    """UNIX time at which the slot was entered."""


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """The slot at one moment."""

    holder: SlotHolder | None
    waiting: tuple[str, ...]
    """Ids of the waiting requests, the next one first."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """A waiting request."""

    priority: int
    """The lowest value enters first."""
    request_id: str
    batch: bool
    characters: int


class Slot:
    """A FIFO queue with one holder and a bounded number of waiting requests."""

    def __init__(self, max_waiting: int, timeout_s: float, *, live_first: bool = True, shows_text: bool = True) -> None:
        """
        Args:
            max_waiting: most live requests that may wait; with 0 a request enters only when the slot is free.
            timeout_s: their longest wait.
            live_first: a waiting live request enters before a waiting job; else both enter by arrival.
            shows_text: whether ``status`` has the holder's text.
        """
        self._semaphore = PrioritySemaphore(1)
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._batch_priority = 1 if live_first else 0
        self._shows_text = shows_text
        self._holder: SlotHolder | None = None
        self.last_entered_s: float | None = None
        """UNIX time of the latest entry."""
        self._waiting: list[_Ticket] = []
        self._speed = _Speed()
        self._held_characters = 0
        self._entered_s = 0.0
        self._changed = asyncio.Event()

    def status(self) -> SlotStatus:
        """The holder and the waiting requests; returns at once."""
        return SlotStatus(self._holder, tuple(ticket.request_id for ticket in self._waiting))

    async def change(self) -> None:
        """Wait for the next status change."""
        await self._changed.wait()

    @property
    def position_of_newcomer(self) -> int:
        """The position of a live request that arrives now; 0 where it enters at once."""
        return 0 if self._semaphore.is_open else sum(ticket.priority == 0 for ticket in self._waiting) + 1

    def expected_wait_s(self, position: int) -> float:
        """How long the request at a position probably waits: for the characters before it, at the measured speed."""
        if position == 0:
            return 0.0
        ahead = sum(ticket.characters for ticket in self._waiting[: position - 1]) * self._speed.s_per_character
        if self._holder is None:
            return ahead
        held_s = time.monotonic() - self._entered_s
        return ahead + max(0.0, self._held_characters * self._speed.s_per_character - held_s)

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
            reference_audio_index: the index of its voice.
            request_id: identifies the request while it waits.
            batch: a job, which waits without limits and counts towards none.
            is_admitted: a later segment of a text that has held the slot before: a full queue does not refuse it.

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
        self._held_characters, self._entered_s = len(text), time.monotonic()
        self.last_entered_s = time.time()
        self._holder = SlotHolder(text if self._shows_text else "", reference_audio_index, self.last_entered_s)
        self._notify()
        try:
            yield
            self._speed.add(len(text), time.monotonic() - self._entered_s)  # only of texts that were finished
        finally:
            self._holder = None
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
    """Seconds of synthesis per character, over recent texts by their length."""

    def __init__(self) -> None:
        self._characters = 50.0  # an assumption that the first syntheses replace
        self._seconds = 1.0

    @property
    def s_per_character(self) -> float:
        return self._seconds / self._characters

    def add(self, characters: int, seconds: float) -> None:
        """Count a synthesis that was finished."""
        self._characters = _DECAY * self._characters + characters
        self._seconds = _DECAY * self._seconds + seconds
