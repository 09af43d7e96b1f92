"""Threads of their own for calls that block on the database, so that a lock there occupies no thread of live speech."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from streaming_server.errors import StorageUnavailable

T = TypeVar("T")


class StorageThreads:
    """A few threads, and a bound on how long a call waits for one."""

    def __init__(self, count: int, start_timeout_s: float | None = None) -> None:
        """``start_timeout_s``: a call that no thread has taken by then fails; None lets it wait."""
        self._executor = ThreadPoolExecutor(count, "storage")
        self._start_timeout_s = start_timeout_s

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Run ``work`` in a thread. A cancellation does not wait for it.

        Raises:
            StorageUnavailable: every thread is busy for longer than ``start_timeout_s``.
        """
        future = self._executor.submit(contextvars.copy_context().run, work, *arguments)
        return await self._outcome(future)

    async def run_to_end(self, work: Callable[..., T], *arguments: object) -> T:
        """As `run`, but a cancellation waits until the thread has finished."""
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
                raise StorageUnavailable("the database is busy; try again later") from None
            raise
        finally:
            timer.cancel()
