"""Runs producers on a thread and exposes them as bounded, cancellable async iterators.

`OwnerThread.iterate` runs one blocking producer after another. `OwnerThread.interleave` runs several generators at the
same time, each one step in turn.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from contextlib import aclosing
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

import anyio

from streaming_server.engines.urgency import by_urgency, fulfil

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


class Waiting(Enum):
    """What an interleaved generator yields where it can do nothing before the next `step` or `OwnerThread.wake`."""

    WAITING = "waiting"


WAITING = Waiting.WAITING

Steps = Generator[T | Waiting | None, None, None]
"""Yields items; None after a step of work without one; and ``WAITING``."""


def in_turns(work: Callable[[Check], T], name: str) -> Generator[None, None, T]:
    """Run work that calls a `Check` between its pieces as a generator, with one piece in each turn.

    The pieces run on a thread of their own, and a turn waits for its piece: no other turn runs meanwhile. When the
    generator is closed, the check raises `Cancelled`.

    Args:
        work: The work; its result or exception is that of the generator.
        name: Of the thread.
    """
    turn, ended = threading.Semaphore(0), threading.Semaphore(0)
    result: Future[T] = Future()
    is_closed = False

    def check() -> None:
        if not is_closed:
            ended.release()
            turn.acquire()
        if is_closed:
            raise Cancelled

    def run() -> None:
        try:
            result.set_result(work(check))
        except BaseException as error:
            result.set_exception(error)
        ended.release()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    ended.acquire()
    try:
        while not result.done():
            yield
            turn.release()
            ended.acquire()
    finally:
        if not result.done():
            is_closed = True
            turn.release()
        thread.join()
    return result.result()


class OwnerThread:
    """The only thread that uses an engine: engines and their devices are bound to one thread.

    Args:
        name: Of the thread.
        step: Work for all interleaved generators together, called after each of them had a turn; returns whether there
            was any. An exception ends all of them.
        duration_s: Duration of an item. With it, a turn is one step of a single generator, the most urgent one: first
            those whose listeners are about to run out of items, then those without items so far.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], bool] = lambda: False,
        duration_s: Callable[[Any], float] | None = None,
    ) -> None:
        self._step = step
        self._duration_s = duration_s
        self._changed = threading.Condition()
        self._work: deque[Callable[[], None] | None] = deque()
        self._is_awake = False
        self._streams: list[_Stream[Any]] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Give every interleaved generator a turn soon; may be called on any thread."""
        with self._changed:
            self._is_awake = True
            self._changed.notify()

    def _run(self) -> None:
        is_busy = False
        while True:
            with self._changed:
                while not (is_busy or self._is_awake or self._work):
                    self._changed.wait()
                self._is_awake = False
                has_work = bool(self._work)
                work = self._work.popleft() if has_work else None
            if work is not None:
                work()
            elif has_work:
                return
            is_busy = self._turn()

    def _put(self, work: Callable[[], None] | None) -> None:
        with self._changed:
            self._work.append(work)
            self._changed.notify()

    def _turn(self) -> bool:
        """Advance the streams and then all of them together; return whether another turn is worthwhile at once."""
        if not self._streams:
            return False
        is_busy = False
        for stream in by_urgency(self._streams) if self._duration_s else [*self._streams]:
            is_busy |= stream.advance()
            if is_busy and self._duration_s:
                break
        try:
            is_busy |= self._step()
        except BaseException as error:
            for stream in self._streams:
                stream.fail(error)
        self._streams = [stream for stream in self._streams if not stream.is_ended]
        return is_busy

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a blocking function on the thread and return its result or raise its exception.

        Cancelling stops the wait, but not the function.
        """

        future: Future[T] = Future()
        self._put(lambda: fulfil(future, function, *arguments))
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
        self._put(lambda: bridge.run(produce))
        async with aclosing(self._items(bridge, stop)) as items:
            async for item in items:
                yield item

    async def interleave(
        self, begin: Callable[[Check], Steps[T]], limit: int = 64, stop: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[T, None]:
        """Run a generator on the thread together with others, one step of each in turn, and yield its items.

        A generator whose items are not read has no turn, and the others continue. ``aclose()`` closes the generator
        before its next step.

        Args:
            begin: Called on the thread; its argument raises `Cancelled` once the iterator is closed.
            limit: maximum number of unread items.
            stop: as for `iterate`.
        """
        bridge = _Bridge[T](limit, self.wake)
        self._put(lambda: self._streams.append(_Stream(bridge, begin, self._duration_s)))

        def leave() -> None:
            stop()
            self.wake()

        async with aclosing(self._items(bridge, leave)) as items:
            async for item in items:
                yield item

    async def _items(self, bridge: _Bridge[T], stop: Callable[[], None]) -> AsyncGenerator[T, None]:
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
        self._put(None)
        self._thread.join()


class _Stream(Generic[T]):
    """An interleaved generator and where its items go."""

    def __init__(
        self, bridge: _Bridge[T], begin: Callable[[Check], Steps[T]], duration_s: Callable[[T], float] | None
    ) -> None:
        self._bridge = bridge
        self._steps = begin(bridge.check)
        self._duration_s = duration_s
        self._played_s = 0.0
        self.is_ended = False

    @property
    def needed_s(self) -> float:
        """When the listener has played all items, on the monotonic clock; 0 before the first, -1 without a listener."""
        return -1.0 if self._bridge.is_cancelled else self._played_s

    def advance(self) -> bool:
        """Run one step; return whether the next one is worthwhile at once."""
        if self._bridge.is_cancelled:
            self._end(None)
        elif self._bridge.is_full:
            return False
        else:
            try:
                item = next(self._steps)
            except (StopIteration, Cancelled):
                self._end(None)
            except BaseException as error:
                self._end(error)
            else:
                if item is not None and not isinstance(item, Waiting):
                    self._bridge(item)
                    if self._duration_s is not None:
                        self._played_s = max(self._played_s, time.monotonic()) + self._duration_s(item)
                return not isinstance(item, Waiting)
        return True

    def fail(self, error: BaseException) -> None:
        if not self.is_ended:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self.is_ended = True
        try:
            self._steps.close()
        except BaseException as closing:
            error = error or closing
        self._bridge.end(error)


class _Bridge(Generic[T]):
    """Passes items from the thread to the event loop, with one wake-up for several items."""

    def __init__(self, limit: int, has_room: Callable[[], None] = lambda: None) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._has_room = has_room
        """Called on the loop when items were read after it was full."""
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._cancelled = False
        self._ended = False
        self._error: BaseException | None = None
        self._wake_pending = False
        self._awake = asyncio.Event()
        self.stopped = asyncio.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled

    @property
    def is_full(self) -> bool:
        return len(self._items) >= self._limit

    def run(self, produce: Callable[[Emit[T]], None]) -> None:
        error: BaseException | None = None
        try:
            if not self._cancelled:
                produce(self)
        except Cancelled:
            pass
        except BaseException as raised:
            error = raised
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """No more items follow; ``error`` is raised to the reader."""
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
                was_full = self.is_full
                items, self._items = self._items, deque()
                self._wake_pending = False
                self._changed.notify()
            if was_full:
                self._has_room()
            for item in items:
                yield item
            if items:
                continue
            if self.stopped.is_set():
                if self._error is not None:
                    raise self._error
                return
            await self._awake.wait()
