"""Where samples are encoded: a few threads, those streams first that are least far ahead.

A fast engine finishes many texts before one of them is encoded. Without an order each newcomer's first page would
wait behind minutes of audio that nobody has had time to hear. Knows streams only as a number: how far each has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from streaming_server.core.turnstile import Turnstile

T = TypeVar("T")


class EncodeLane:
    """Threads for encoders, given in the order of need."""

    def __init__(self, workers: int) -> None:
        self._turnstile = Turnstile(workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")

    async def run(self, ahead: float, work: Callable[[], T]) -> T:
        """Run ``work`` on a thread when no stream with less audio wants it.

        Args:
            ahead: how much audio the stream has encoded already, in any unit common to all.
            work: short; the next in order waits for it.
        """
        await self._turnstile.acquire(ahead)
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        # Not at the end of this coroutine: if that is cancelled, the thread is still busy.
        future.add_done_callback(lambda _: self._turnstile.release())
        return await asyncio.shield(future)

    def close(self) -> None:
        """End the threads; work that has begun is finished."""
        self._pool.shutdown()
