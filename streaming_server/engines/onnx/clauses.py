"""Ends the phonemes of a sentence, and splits them into clauses of limited length."""

from __future__ import annotations

import re
from collections.abc import Iterator

from streaming_server.segmentation import ends_line, is_sentence
from streaming_server.text import pause_s

_TINY = 8
"""A clause with fewer phonemes is joined with the next one."""
_CLAUSE_BREAK = re.compile(r"(?<=[,;:—.!?…])[”)]? +")


def ended(phonemes: str, text: str, begin: int, end: int) -> str:
    """Phonemes with a full stop if their sentence ends without one.

    The dot of an abbreviation such as "p.m." is not in the phonemes; a heading or an item of a list has none.

    Args:
        phonemes: of the sentence.
        text: contains the sentence.
        begin: index of its first character.
        end: index behind its last character.
    """
    is_end = is_sentence(text[begin:end]) or ends_line(text, end)
    return phonemes.rstrip() + "." if phonemes.strip() and is_end and not pause_s(phonemes) else phonemes


def clauses(phonemes: str, limit: int, opening: int | None = None) -> list[str]:
    """Split phonemes into parts of at most ``limit`` characters, after punctuation if possible.

    Args:
        phonemes: words separated by blanks.
        limit: longer parts are split between words, or within a word that is longer by itself.
        opening: a longer sentence is split after its first clause, so that its audio starts early.
    """
    parts: list[str] = []
    for clause in _CLAUSE_BREAK.split(phonemes):
        is_opening = opening is not None and len(parts) == 1 and len(parts[0]) >= _TINY and len(phonemes) > opening
        if parts and not is_opening and len(parts[-1]) + len(clause) < limit:
            parts[-1] += " " + clause
        else:
            parts += _words(clause, limit)
    return parts


def _words(clause: str, limit: int) -> Iterator[str]:
    while len(clause) > limit:
        cut = clause.rfind(" ", 1, limit) + 1 or limit
        yield clause[:cut].rstrip()
        clause = clause[cut:].lstrip()
    if clause:
        yield clause
