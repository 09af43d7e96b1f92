"""Work on the device in pieces, so that equal pieces of several requests can run as one batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What a job needs to run next."""

    key: Hashable
    """Pieces with equal keys can run as one batch."""
    item: Any
    run: Callable[[Sequence[Any]], None]
    """Runs the items of pieces with equal keys."""
    limit: int = 1
    """Maximum number of items that run together."""


Job = Generator[Piece, None, T]
"""Yields pieces, each of which has run when the generator continues, and returns the result."""


def result_of(job: Job[T]) -> T:
    """Run the pieces of a job one by one and return its result."""
    while True:
        try:
            piece = next(job)
        except StopIteration as end:
            result: T = end.value
            return result
        piece.run([piece.item])


def batch_sizes(limit: int) -> list[int]:
    """Sizes of the batches that are recorded for up to ``limit`` items: the powers of two."""
    return [1 << power for power in range(limit.bit_length())]


def batch_size(count: int) -> int:
    """The smallest recorded batch that holds ``count`` items."""
    return 1 << (count - 1).bit_length()
