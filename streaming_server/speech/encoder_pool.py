"""Where samples are encoded: a few threads, those streams first that are least far ahead.

A fast engine finishes many texts before one of them is encoded. Without an order each newcomer's first page would
wait behind minutes of audio that nobody has had time to hear. Knows streams only as a number: how far each has come.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from streaming_server.speech.priority_semaphore import PrioritySemaphore

T = TypeVar("T")


def _step_back() -> None:
    """Let the engine and the event loop go first where the cores are busy: Linux gives each thread its own niceness."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class EncoderPool:
    """Threads for encoders, given in the order of need."""

    def __init__(self, workers: int) -> None:
        self._turnstile = PrioritySemaphore(workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="encode", initializer=_step_back)

    async def run(self, ahead: float, work: Callable[[], T]) -> T:
        """Run ``work`` on a thread when no stream with less audio wants it.

        Args:
            ahead: how much audio the stream has encoded already, in any unit common to all.
            work: short; the next in order waits for it.
        """
        await self._turnstile.acquire(ahead)
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, work)
        # Only once the thread is done, even if this coroutine is cancelled; and two steps of the loop later, so that
        # the stream just served has asked again, and goes on if it is still the one with least.
        future.add_done_callback(lambda _: loop.call_soon(loop.call_soon, self._turnstile.release))
        return await asyncio.shield(future)

    def close(self) -> None:
        """End the threads; work that has begun is finished."""
        self._pool.shutdown()
