"""Text that is to be spoken: what may stand in it, how it is shown, and how long it will take.

Pure functions over strings; nothing here knows a language model, an engine or a request.
"""

from __future__ import annotations

import re

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_PREVIEW_CHARACTERS = 50
_WIDE_RANGES = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WIDE = re.compile(f"[{_WIDE_RANGES}]")
_WORD = re.compile(rf"[{_WIDE_RANGES}][^\s\w]*|[^\s{_WIDE_RANGES}]+")
_SENTENCE_END = re.compile(r"[.!?…。！？][^\s\w]*$")
_WIDE_S, _NARROW_S = 0.25, 0.065


def forbidden_character(text: str) -> tuple[str, int] | None:
    """The first character that no text has a use for, as ``U+XXXX``, and its place; None where all is well.

    Control characters other than tab and line breaks, and surrogates, which no UTF-8 can hold.
    """
    if found := _FORBIDDEN.search(text):
        return f"U+{ord(found[0]):04X}", found.start()
    return None


def preview(text: str) -> str:
    """The beginning of a text, marked where it is cut."""
    return text[:_PREVIEW_CHARACTERS] + ("..." if len(text) > _PREVIEW_CHARACTERS else "")


def estimated_duration_s(text: str) -> float:
    """About how long speaking takes: a Han character or a syllable block at 0.25 s, any other at 0.065 s."""
    wide = len(_WIDE.findall(text))
    return wide * _WIDE_S + (len(text) - wide) * _NARROW_S


def cut_by_words(text: str, most: int) -> list[str]:
    """Pieces of at most so many words, at ends of sentences where they have any; a Han character counts as a word."""
    pieces: list[str] = []
    words = list(_WORD.finditer(text))
    first = 0
    while first < len(words):
        last = min(first + most, len(words)) - 1
        if last < len(words) - 1:
            last = next((place for place in range(last, first - 1, -1) if _SENTENCE_END.search(words[place][0])), last)
        pieces.append(text[words[first].start() : words[last].end()])
        first = last + 1
    return pieces
