"""The one slot in which synthesis happens, first come, first served, and who is in it.

Knows no engine: whoever wants the device enters the slot first, live or batch.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from streaming_server.core.turnstile import Turnstile
from streaming_server.errors import QueueFull, QueueTimeout


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
    waiting: int


class Slot:
    """A FIFO of one holder and a bounded number who wait."""

    def __init__(self, max_waiting: int, timeout_s: float) -> None:
        """
        Args:
            max_waiting: most who may wait; 0 lets in only when the slot is free.
            timeout_s: longest wait.
        """
        self._turnstile = Turnstile(1)
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._holder: SlotHolder | None = None
        self._average_hold_s = 1.0

    def status(self) -> SlotStatus:
        """Who holds the slot and how many wait; never waits itself."""
        return SlotStatus(self._holder, self._turnstile.waiting)

    @property
    def expected_wait_s(self) -> int:
        """A guess, from recent holds, at how long a newcomer would wait; at least 1."""
        return max(1, math.ceil(self._average_hold_s * (self._turnstile.waiting + 1)))

    @asynccontextmanager
    async def enter(self, text: str, reference_audio_index: int | None) -> AsyncIterator[None]:
        """Hold the slot for the body of the ``with``.

        Raises:
            QueueFull: as many wait as may.
            QueueTimeout: the slot did not come free in time.
        """
        if not self._turnstile.is_open and self._turnstile.waiting >= self._max_waiting:
            raise QueueFull(self._max_waiting)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._turnstile.acquire()
        except TimeoutError:
            raise QueueTimeout(self._timeout_s) from None
        entered_s = time.monotonic()
        self._holder = SlotHolder(text, reference_audio_index, time.time())
        try:
            yield
        finally:
            self._holder = None
            self._average_hold_s += 0.2 * (time.monotonic() - entered_s - self._average_hold_s)
            self._turnstile.release()
