"""Dedicated threads for blocking calls of the storage, so that a locked database blocks no thread of live speech."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from streaming_server.errors import StorageUnavailable

T = TypeVar("T")
_LOOKUP_TIMEOUT_S = 0.2


class LookupThreads:
    """A thread pool for reads on which live speech depends, and which therefore must not wait for the database."""

    def __init__(self, count: int) -> None:
        self._executor = ThreadPoolExecutor(count, "lookup")

    def run(self, read: Callable[..., T], *arguments: object) -> T:
        """Return what ``read`` returns. Blocks for a fraction of a second at most.

        Raises:
            StorageUnavailable: the database is locked or unavailable.
        """
        future = self._executor.submit(read, *arguments)
        try:
            return future.result(_LOOKUP_TIMEOUT_S)
        except TimeoutError:
            future.cancel()  # one that has not started would delay later lookups
            raise StorageUnavailable("the database is busy; try again later") from None

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(cancel_futures=True)


class StorageThreads:
    """A thread pool with a limit on the wait for a thread."""

    def __init__(self, count: int, start_timeout_s: float | None = None, name: str = "database") -> None:
        """``start_timeout_s``: maximum wait for a thread; None for no limit. ``name``: what they use, for errors."""
        self._name = name
        self._executor = ThreadPoolExecutor(count, "storage")
        self._start_timeout_s = start_timeout_s

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Run ``work`` in a thread. Cancellation does not wait for it.

        Raises:
            StorageUnavailable: no thread was free within ``start_timeout_s``.
        """
        future = self._executor.submit(contextvars.copy_context().run, work, *arguments)
        return await self._outcome(future)

    async def run_to_end(self, work: Callable[..., T], *arguments: object) -> T:
        """Like `run`, but cancellation waits for the end of ``work``."""
        task = asyncio.create_task(self.run(work, *arguments))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.gather(task, return_exceptions=True)
            raise

    def close(self) -> None:
        """Wait for the running calls and end the threads."""
        self._executor.shutdown()

    async def _outcome(self, future: Future[T]) -> T:
        if self._start_timeout_s is None:
            return await asyncio.wrap_future(future)
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = future.cancel()

        timer = asyncio.get_running_loop().call_later(self._start_timeout_s, expire)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if expired and task and not task.cancelling():
                raise StorageUnavailable(f"the {self._name} is busy; try again later") from None
            raise
        finally:
            timer.cancel()
