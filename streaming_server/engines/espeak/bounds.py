"""Bounds on what reaches espeak-ng, whose buffers have fixed sizes that it does not always check.

A text within the bounds comes back as it is. Beyond them only spaces are added, marks dropped and dots replaced, where
no word of a language is that long.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import count

from streaming_server.text import word_pieces

MAX_WORD = 60
"""Characters without white space."""
_MAX_DOTTED = 12
"""Single letters in a row with dots between them: espeak-ng copies such an abbreviation into 80 bytes."""
_MAX_MARKS = 4
"""Combining marks on one character."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]|[\ud800-\udfff]")
_LETTERS = re.compile(rf"(?<!\w)(?:\w\W+){{{_MAX_DOTTED},}}")
_SEPARATOR = re.compile(r"\W+")
_LONG = re.compile(rf"\S{{{MAX_WORD + 1},}}")


def bounded(text: str) -> str:
    """The text as espeak-ng can take it."""
    text = _CONTROL.sub(" ", text)
    text = _without_marks(text)
    text = _LETTERS.sub(_without_dots, text)
    return _LONG.sub(lambda word: " ".join(word_pieces(word[0], MAX_WORD // 2, MAX_WORD)), text)


def _without_marks(text: str) -> str:
    if text.isascii():
        return text
    kept = []
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character)[0] == "M" else 0
        if marks <= _MAX_MARKS:
            kept.append(character)
    return "".join(kept)


def _without_dots(letters: re.Match[str]) -> str:
    """Without the dots after every `_MAX_DOTTED`-th letter."""
    numbers = count(1)
    return _SEPARATOR.sub(
        lambda separator: separator[0] if next(numbers) % _MAX_DOTTED else separator[0].replace(".", " "), letters[0]
    )
