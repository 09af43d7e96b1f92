"""When the words of a text are said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from streaming_server.domain import Mark
from streaming_server.text import word_spans

Precision = Literal["engine", "segment"]
"""``engine``: measured. ``segment``: exact at both ends of a passage, its characters share the time between them."""


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word with its punctuation; seconds from the start of the stream's audio."""

    text: str
    start_s: float
    end_s: float
    begin: int
    """Index of its first character in the passage."""


@dataclass(frozen=True, slots=True)
class NamedTime:
    """When a bookmark is reached; seconds from the start of the stream's audio."""

    name: str
    time_s: float


@dataclass(frozen=True)
class Passage:
    """A text that was synthesised at once, and its place in the stream's audio."""

    text: str
    start_s: float
    """Of its first sample, from the start of the stream's audio; a pause may lie between two passages."""
    end_s: float
    marks: Sequence[Mark] = ()
    """From ``start_s``: of words and of the ends of spans, as far as they are known; and of bookmarks."""

    @property
    def precision(self) -> Precision:
        words = [mark for mark in self.marks if not mark.name]
        return "engine" if words and all(mark.is_measured for mark in words) else "segment"

    @property
    def bookmarks(self) -> list[NamedTime]:
        """The bookmarks of the text in their order."""
        return [NamedTime(mark.name, self.start_s + mark.time_s) for mark in self.marks if mark.name]

    @cached_property
    def times_s(self) -> npt.NDArray[np.float64]:
        """When each character begins, and when the last one ends: rising, shape ``(len(text) + 1,)``."""
        known = {0: self.start_s, len(self.text): self.end_s}
        known |= {mark.character: self.start_s + mark.time_s for mark in self.marks if not mark.name}
        places = sorted(known)
        times_s = np.interp(np.arange(len(self.text) + 1), places, [known[place] for place in places])
        rising: npt.NDArray[np.float64] = np.maximum.accumulate(times_s.clip(self.start_s, self.end_s))
        return rising

    def words(self) -> list[TimedWord]:
        """The words in their order."""
        times_s = self.times_s
        return [
            TimedWord(self.text[begin:end], float(times_s[begin]), float(times_s[end]), begin)
            for begin, end in word_spans(self.text)
        ]


def precision_of(passages: Iterable[Passage]) -> Precision:
    """The lowest precision among several passages."""
    return "engine" if all(passage.precision == "engine" for passage in passages) else "segment"
