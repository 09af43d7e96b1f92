"""The threads that encode samples, shared by all streams; the stream with the least encoded audio has priority.

A fast engine finishes many texts before one of them is encoded. In order of arrival, the first page of a new stream
would wait behind minutes of audio of earlier streams.
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
    """Lower the priority of the thread below the engine and the event loop; on Linux niceness applies to a thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class EncoderPool:
    """Threads for encoders, one per core, granted to the stream with the least encoded audio first."""

    def __init__(self) -> None:
        workers = _usable_cores()
        self._semaphore = PrioritySemaphore(workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="encode", initializer=_step_back)

    @property
    def waiting(self) -> int:
        """Number of streams that wait for a thread."""
        return self._semaphore.waiting

    async def run(self, ahead: float, work: Callable[[], T]) -> T:
        """Run ``work`` on a thread when no stream with less encoded audio waits.

        Args:
            ahead: amount of audio that the stream has encoded, in a unit common to all streams.
            work: a short piece of work, because other streams wait for it.
        """
        await self._semaphore.acquire(ahead)
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, work)
        # Released when the thread is done, even if this coroutine is cancelled, and two steps of the loop later, so
        # that the stream can ask again and continue if it still has the least audio.
        future.add_done_callback(lambda _: loop.call_soon(loop.call_soon, self._semaphore.release))
        return await asyncio.shield(future)

    def close(self) -> None:
        """End the threads after the running work."""
        self._pool.shutdown()
