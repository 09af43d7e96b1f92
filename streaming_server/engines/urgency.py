"""The order in which several listeners are served."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

T = TypeVar("T")

SOON_S = 0.25
"""A listener with less audio left is served before those without audio."""


class _HasDeadline(Protocol):
    @property
    def needed_s(self) -> float:
        """When a listener has played all audio, on the monotonic clock; 0 if there is none, -1 without a listener."""


Deadlined = TypeVar("Deadlined", bound=_HasDeadline)


def by_urgency(work: Iterable[Deadlined]) -> list[Deadlined]:
    """First what is needed soon, then what is needed at once because there is no audio yet, then the others.

    Without audio a listener waits a little longer; where it ends too early, the speech has a gap.
    """
    soon_s = time.monotonic() + SOON_S

    def urgency(one: Deadlined) -> tuple[int, float]:
        return 1 if not one.needed_s else 0 if one.needed_s < soon_s else 2, one.needed_s

    return sorted(work, key=urgency)


class UrgentFirst:
    """Runs functions on a thread of its own, always the most urgent one.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, name)
        self._lock = threading.Lock()
        self._waiting: list[_Urgent] = []

    def submit(self, needed_s: float, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Run a function.

        Args:
            needed_s: When a listener has played all audio that there is without its result, on the monotonic clock; 0
                if there is none.
            function: The function.
            arguments: Its arguments.
        """
        future: Future[T] = Future()
        with self._lock:
            self._waiting.append(_Urgent(needed_s, partial(fulfil, future, function, *arguments)))
        self._executor.submit(self._run)
        return future

    def _run(self) -> None:
        with self._lock:
            first = by_urgency(self._waiting)[0]
            self._waiting.remove(first)
        first.work()

    def close(self) -> None:
        """Stop the thread after all submitted functions."""
        self._executor.shutdown()


@dataclass(frozen=True, slots=True, eq=False)
class _Urgent:
    needed_s: float
    work: Callable[[], None]


def fulfil(future: Future[T], function: Callable[..., T], *arguments: object) -> None:
    """Set the result or the exception of a function, unless the future was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function(*arguments))
    except BaseException as error:
        future.set_exception(error)
