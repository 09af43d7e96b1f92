"""Runs a blocking producer on a thread and exposes it as a bounded, cancellable async iterator."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

import anyio

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

Check = Callable[[], None]
"""Raises `Cancelled` after the work was cancelled."""


def never_cancelled() -> None:
    """A `Check` for work that cannot be cancelled."""


class Cancelled(Exception):
    """Stops a producer; not reported as an error."""


class Emit(Protocol[T_contra]):
    """The callback with which a producer emits items."""

    def __call__(self, item: T_contra, /) -> bool:
        """Emit one item, waiting while too many are unread; return False after the iterator was closed."""

    def check(self) -> None:
        """
        Raises:
            Cancelled: the iterator was closed.
        """


class OwnerThread:
    """The only thread that uses an engine: engines and their devices are bound to one thread."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a blocking function on the thread and return its result or raise its exception.

        Cancelling stops the wait, but not the function.
        """

        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self._work.put(work)
        return await asyncio.wrap_future(future)

    async def iterate(
        self, produce: Callable[[Emit[T]], None], limit: int = 64, stop: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[T, None]:
        """Run ``produce(emit)`` on the thread and yield what it emits; its exception is raised here.

        ``aclose()`` makes ``emit`` return False and waits until ``produce`` has returned.

        Args:
            produce: must return promptly once ``emit`` returned False or ``emit.check`` raised.
            limit: maximum number of unread items before ``emit`` blocks.
            stop: called on the loop before the wait for ``produce``, to interrupt what it is doing.
        """
        bridge = _Bridge[T](limit)
        self._work.put(lambda: bridge.run(produce))
        try:
            async for item in bridge.read():
                yield item
        finally:
            bridge.cancel()
            stop()
            with anyio.CancelScope(shield=True):
                await bridge.stopped.wait()

    async def aclose(self) -> None:
        """Stop the thread after all submitted work."""
        with anyio.CancelScope(shield=True):
            await self.call(lambda: None)
        self._work.put(None)
        self._thread.join()


class _Bridge(Generic[T]):
    """Passes items from the thread to the event loop, with one wake-up for several items."""

    def __init__(self, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._cancelled = False
        self._ended = False
        self._error: BaseException | None = None
        self._wake_pending = False
        self._awake = asyncio.Event()
        self.stopped = asyncio.Event()

    def run(self, produce: Callable[[Emit[T]], None]) -> None:
        try:
            if not self._cancelled:
                produce(self)
        except Cancelled:
            pass
        except BaseException as error:
            self._error = error
        self._ended = True
        self._tell(self._stop)

    def _stop(self) -> None:
        self.stopped.set()
        self._awake.set()

    def check(self) -> None:
        if self._cancelled:
            raise Cancelled

    def __call__(self, item: T, /) -> bool:
        with self._changed:
            while len(self._items) >= self._limit and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                return False
            self._items.append(item)
            wake, self._wake_pending = not self._wake_pending, True
        if wake:
            self._tell(self._awake.set)
        return True

    def _tell(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the event loop is closed
            self._cancelled = True

    def cancel(self) -> None:
        with self._changed:
            self._cancelled = True
            self._changed.notify()

    async def read(self) -> AsyncGenerator[T, None]:
        while True:
            self._awake.clear()
            with self._changed:
                items, self._items = self._items, deque()
                self._wake_pending = False
                self._changed.notify()
            for item in items:
                yield item
            if items:
                continue
            if self.stopped.is_set():
                if self._error is not None:
                    raise self._error
                return
            await self._awake.wait()
