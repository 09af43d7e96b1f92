"""A blocking producer behind an async face: one owner thread, bounded, cancellable.

This module does not know engines or audio.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import anyio

T = TypeVar("T")


class OwnerThread:
    """The one thread that touches what it owns."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def call(self, fn: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: fn(*args))

    async def iterate(self, produce: Callable[[Callable[[T], bool]], None], limit: int = 64) -> AsyncGenerator[T, None]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[T | None] = asyncio.Queue()
        room = threading.Semaphore(limit)
        gone = threading.Event()

        def emit(item: T) -> bool:
            while not room.acquire(timeout=0.05):
                if gone.is_set():
                    return False
            if not gone.is_set():
                loop.call_soon_threadsafe(queue.put_nowait, item)
            return not gone.is_set()

        def run() -> None:
            try:
                produce(emit)
            finally:
                loop.call_soon_threadsafe(queue.put_nowait, None)

        ended = loop.run_in_executor(self._executor, run)
        try:
            while (item := await queue.get()) is not None:
                room.release()
                yield item
        finally:
            gone.set()
            with anyio.CancelScope(shield=True):
                await ended

    async def aclose(self) -> None:
        self._executor.shutdown(wait=True)
