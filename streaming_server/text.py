"""Functions on text: allowed characters, preview, duration and splitting, all in linear time."""

from __future__ import annotations

import re
from collections.abc import Iterator

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_PREVIEW_CHARACTERS = 50
_WIDE_RANGES = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WIDE = re.compile(f"[{_WIDE_RANGES}]")
_WORD = re.compile(rf"[{_WIDE_RANGES}][^\s\w]*|[^\s{_WIDE_RANGES}]+")
PAUSE = re.compile(r"\[pause (\d{1,6}(?:\.\d{1,6})?)(ms|s)\]", re.IGNORECASE | re.ASCII)
"""A pause within a text, such as ``[pause 0.5s]``."""
_SENTENCE_MARKS = frozenset(".!?…。！？؟۔।॥")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[…。！？؟۔।॥]|\n")
_CLAUSE_END = re.compile(r"[,;:،؛](?=\s[^\s\d])|[，、；：](?!\d)")
_WORD_END = re.compile(rf"(?<=[^\W\d_])\s(?=[^\W\d_])|[{_WIDE_RANGES}](?!\d)")
_BREAKABLE = re.compile(r"[^\w\s'’](?=\w)")
_LOOK_AHEAD = 2
"""Number of characters after a boundary that the patterns need."""
_BOUNDARIES = (_SENTENCE_END, _CLAUSE_END, _WORD_END, re.compile(rf"[\s{_WIDE_RANGES}]"))
_WIDE_S, _NARROW_S = 0.25, 0.065
_PAUSES_S = {",": 0.12, ";": 0.22, ":": 0.22, "—": 0.18, ".": 0.38, "!": 0.38, "?": 0.38, "…": 0.45}
_TO_NARROW = str.maketrans("，、；：。！？–؟۔।॥،؛", ",,;:.!?—?...,;")
_CLOSING = "\"'”’“»«)）」』 \n\t"


def forbidden_character(text: str) -> tuple[str, int] | None:
    """Return the first character that is not allowed, as ``U+XXXX``, and its position; None if there is none.

    Not allowed are control characters other than tab and line breaks, and surrogates, which UTF-8 cannot encode.
    """
    if found := _FORBIDDEN.search(text):
        return f"U+{ord(found[0]):04X}", found.start()
    return None


def preview(text: str) -> str:
    """Return the beginning of a text, with an ellipsis if it is shortened."""
    return text[:_PREVIEW_CHARACTERS] + ("..." if len(text) > _PREVIEW_CHARACTERS else "")


def estimated_duration_s(text: str) -> float:
    """Estimate the duration of speech: 0.25 s per Han character or syllable block, 0.065 s per other character."""
    wide = len(_WIDE.findall(text))
    return wide * _WIDE_S + (len(text) - wide) * _NARROW_S


def pieces(text: str, max_characters: int) -> Iterator[str]:
    """Split a text into pieces of limited length, whose concatenation is the text.

    Each piece ends after the last sentence that fits; if none fits, after a clause, between two words that are not
    numbers, after a blank or a Han character, or at its full length.
    """
    start = 0
    while len(text) - start > max_characters:
        limit = start + max_characters
        for boundary in _BOUNDARIES:
            ends = (found.end() for found in boundary.finditer(text, start, limit + _LOOK_AHEAD))
            end = max((end for end in ends if end <= limit), default=0)
            if end:
                break
        end = end or limit
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def word_pieces(word: str, min_characters: int, max_characters: int) -> list[str]:
    """Split a word that is too long after its punctuation, or at ``max_characters`` if no such piece is long enough.

    Args:
        word: characters without white space.
        min_characters: of a piece that ends with punctuation.
        max_characters: of any piece.
    """
    found = []
    start = 0
    while len(word) - start > max_characters:
        limit = start + max_characters
        ends = [mark.end() for mark in _BREAKABLE.finditer(word, start + min_characters, limit)]
        end = ends[-1] if ends else limit
        found.append(word[start:end])
        start = end
    return [*found, word[start:]]


def pause_s(text: str) -> float:
    """How long the pause is that the last punctuation of a text or of phonemes asks for."""
    end = text.rstrip(_CLOSING)[-1:].translate(_TO_NARROW)
    return _PAUSES_S.get(end, 0.0)


def end_pause_s(text: str) -> float:
    """As `pause_s`; a text that ends with a line break ends a sentence."""
    return pause_s(text) or (pause_s(".") if text.rstrip(" \t\r").endswith("\n") else 0.0)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of each word, including punctuation; a Han character counts as a word."""
    return [word.span() for word in _WORD.finditer(text)]


def cut_by_words(text: str, max_words: int) -> list[str]:
    """Split into pieces of limited numbers of words, at sentence ends if possible; a Han character counts as a word."""
    pieces: list[str] = []
    words = list(_WORD.finditer(text))
    first = 0
    while first < len(words):
        last = min(first + max_words, len(words)) - 1
        if last < len(words) - 1:
            last = next((place for place in range(last, first - 1, -1) if _ends_sentence(words[place][0])), last)
            at = text.rfind("[", words[first].start(), words[last].end())
            pause_end = found.end() if (found := PAUSE.match(text, max(at, 0))) else 0
            while words[last].end() < pause_end:
                last += 1
        pieces.append(text[words[first].start() : words[last].end()])
        first = last + 1
    return pieces


def _ends_sentence(word: str) -> bool:
    """Whether a word ends with sentence punctuation."""
    for character in reversed(word):
        if character in _SENTENCE_MARKS:
            return True
        if character.isalnum() or character == "_":
            return False
    return False
