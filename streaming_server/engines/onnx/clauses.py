"""Phonemes of a sentence to clauses of bounded length."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TINY = 8
"""A clause of fewer phonemes is joined with the next."""
_CLAUSE_BREAK = re.compile(r"(?<=[,;:—.!?…])[”)]? +")


def clauses(phonemes: str, limit: int, opening: int | None = None) -> list[str]:
    """A sentence's phonemes in parts of at most ``limit`` characters, cut behind punctuation where there is any.

    Args:
        phonemes: words with blanks between them.
        limit: longer parts are cut between words, or inside one that is longer by itself.
        opening: cut a sentence longer than this at its first clause that is not tiny, so that its audio starts early.
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
