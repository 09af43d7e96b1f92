"""Splits a text into sentences, and incremental text into segments. The time is linear in the length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from unicodedata import east_asian_width

MAX_SENTENCE_CHARACTERS = 300
"""Longer sentences are split at the last clause, word or character that fits."""

# The lookbehinds keep a search from trying each mark of a long run as its first one, which takes quadratic time.
_END = re.compile(r"""(?<![.!?…؟۔])[.!?…؟۔]++["'”’)\]]*+(?=\s|$)|[।॥]+["'”’)\]]*|[。！？][”’」』）]*|\n\s*""")
_LAST_END = re.compile(r"""(?<![.!?…؟۔।॥])[.!?…؟۔।॥]++["'”’)\]]*+$|[。！？][”’」』）]*$""")
_CERTAIN_END = re.compile(r"""(?:[!?؟۔।॥]|(?:^|[\s"'“‘(\[-])([^\W\d_]{4,})\.)["'”’)\]]*\s$""")
_ABBREVIATIONS = frozenset(
    """mr mrs ms dr prof st mt ft gen gov sen rep capt lt col sgt cmdr rev hon pres supt cpl maj adm fr msgr jr sr
    ave blvd rd apt dept univ approx est vs vol fig ch pp cf no nos e.g i.e viz
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri sat sun""".split()  # noqa: SIM905
)
_ONLY_BEFORE_A_NUMBER = frozenset({"no", "nos", "fig", "ch", "pp", "vol", "mon", "sun", "sat", "fri", "mar"})
"""Abbreviations that are also words: ``No. He left.``"""
_WORD_BEFORE = re.compile(r"[\w.]{1,10}$")
_CLAUSE_END = re.compile(r"[,;:—–،؛](?=\s|[^\x00-\x7f])|[，、；：](?!(?<=\d.)\d)(?=\s|[^\x00-\x7f])")
_OPENING_END = re.compile(r"[,;:—–،؛](?=\s+\S)|[，、；：](?!(?<=\d.)\d)(?=.)")
_LINE_END = re.compile(r"[ \t\r]*\n\s*")
_WRAPPED_COLUMNS = 60
"""A line with fewer columns was not broken because it was full."""
_PAUSE = "[pause "
_PAUSE_CHARACTERS = 24
"""More than a pause has, such as ``[pause 0.5s]``."""
_OPENING_CHARACTERS = 24
"""Minimum length of a segment that ends at a clause; shorter ones sound detached."""


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, at most `MAX_SENTENCE_CHARACTERS` each; they contain all but white space.

    A full stop after a title, an abbreviation or an initial, inside a number, or before a word in lower case does not
    end a sentence. A line break does, unless the next line continues in lower case.
    """
    for start, end in sentence_spans(text):
        yield from _bounded(text[start:end].strip())


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the sentences of a text begin and end, of any length."""
    begin = 0
    for end in _END.finditer(text):
        if text[begin : end.end()].strip() and _ends_sentence(text, end):
            yield begin, end.end()
            begin = end.end()
    if text[begin:].strip():
        yield begin, len(text)


def is_sentence(text: str) -> bool:
    """Whether a piece has several words and ends where a sentence does, as far as it shows without what follows."""
    text = text.strip()
    end = _LAST_END.search(text)
    is_long = " " in text or (len(text) > 1 and not text.isascii())
    return end is not None and is_long and _ends_sentence(text, end)


def ends_in_mark(text: str) -> bool:
    """Whether a text ends in a sentence's mark, which may also belong to an abbreviation or a number."""
    return bool(_LAST_END.search(text.rstrip()))


def ends_line(text: str, end: int) -> bool:
    """Whether a sentence without a mark ends at this place because its line does.

    The end of a paragraph is the end of a sentence. A line that may be wrapped is not: it is long, or the next one
    continues in lower case.
    """
    found = _LINE_END.match(text, end)
    if found is None:
        return False
    if found[0].count("\n") > 1:
        return True
    line = text[text.rfind("\n", 0, end) + 1 : end]
    columns = sum(1 + (east_asian_width(character) in "WF") for character in line[:_WRAPPED_COLUMNS])
    return columns < _WRAPPED_COLUMNS and not text[found.end() : found.end() + 1].islower()


def is_certain_end(text: str) -> bool:
    """Whether a text ends a sentence whatever follows: by a word that no abbreviation looks like, and a space."""
    end = _CERTAIN_END.search(text)
    return end is not None and (end[1] or "").lower() not in _ABBREVIATIONS


def needs_space(before: str, after: str) -> bool:
    """Whether two pieces are sentences, or the end and the beginning of some, without the space between them."""
    return bool(_LAST_END.search(before)) and after[:1].isupper()


class Cut(StrEnum):
    """Where a `Segmenter` splits the text."""

    EARLY = "early"
    """At sentences; the first segment may also be a clause, for an early first audio."""
    SENTENCE = "sentence"
    CLAUSE = "clause"
    """At sentences, and at the clauses within them."""


class Segmenter:
    """Splits text that arrives in pieces into segments that further text cannot change.

    A sentence is complete when the first character of the next one has arrived; until then a number, an abbreviation
    or a word may continue.
    """

    def __init__(self, cut: Cut = Cut.EARLY) -> None:
        self._cut = cut
        self._rest = ""
        self._is_first = True

    def push(self, piece: str) -> list[str]:
        """Append a piece; returns the segments that are complete now."""
        self._rest += piece
        spans = list(sentence_spans(self._rest))
        start = spans[-1][0] if spans else 0
        found = [part for span in spans[:-1] for part in _bounded(self._rest[slice(*span)].strip())]
        self._rest = self._rest[start:]
        while len(self._rest.lstrip()) > MAX_SENTENCE_CHARACTERS:
            head, self._rest = _cut(self._rest.lstrip())
            found.append(head)
        if self._cut is Cut.CLAUSE:
            found = [clause for part in found for clause in _clauses(part)]
            *clauses, self._rest = _clauses(self._rest)
            found += clauses
        elif self._cut is Cut.EARLY and self._is_first and not found:
            *found, self._rest = _clauses(self._rest, 1)
        self._is_first = self._is_first and not found
        return found

    def flush(self) -> list[str]:
        """Return the remaining text as segments."""
        found = list(sentences(self._rest))
        if self._cut is Cut.CLAUSE:
            found = [clause for part in found for clause in _clauses(part)]
        self._rest = ""
        self._is_first = self._is_first and not found
        return found


def _clauses(text: str, max_clauses: int = MAX_SENTENCE_CHARACTERS) -> list[str]:
    """The first clauses of a text, at least `_OPENING_CHARACTERS` each, and the rest; never empty."""
    found: list[str] = []
    text = text.lstrip()
    while len(found) < max_clauses and (end := _OPENING_END.search(text, _OPENING_CHARACTERS)):
        found.append(text[: end.end()])
        text = text[end.end() :].lstrip()
    return [*found, text]


def _ends_sentence(text: str, end: re.Match[str]) -> bool:
    following = text[end.end() : end.end() + 2].lstrip(" ")[:1]
    if end[0][0] == "\n":
        return "\n" in end[0][1:] or not following.islower()
    if following.islower():
        return False
    if end[0] != ".":
        return True
    word = _WORD_BEFORE.search(text, max(end.start() - 10, 0), end.start())
    if word is None:
        return True
    name = word[0].rpartition(".")[2]
    if len(name) == 1 and name.isupper() and name != "I":
        return False
    known = word[0].lower()
    return known not in _ABBREVIATIONS or (known in _ONLY_BEFORE_A_NUMBER and not following.isdigit())


def _bounded(sentence: str) -> Iterator[str]:
    while len(sentence) > MAX_SENTENCE_CHARACTERS:
        head, sentence = _cut(sentence)
        yield head
    if sentence:
        yield sentence


def _cut(sentence: str) -> tuple[str, str]:
    """Split a sentence that is too long into the part that fits and the remainder."""
    head = sentence[:MAX_SENTENCE_CHARACTERS]
    clauses = [match.end() for match in _CLAUSE_END.finditer(head, MAX_SENTENCE_CHARACTERS // 2)]
    end = clauses[-1] if clauses else head.rfind(" ") + 1 or MAX_SENTENCE_CHARACTERS
    tag = head.rfind("[", max(0, end - _PAUSE_CHARACTERS), end)
    if sentence[tag : tag + len(_PAUSE)].lower() == _PAUSE and "]" not in head[tag:end]:
        end = tag or MAX_SENTENCE_CHARACTERS  # not within ``[pause 0.5s]``
    return sentence[:end].strip(), sentence[end:].lstrip()
