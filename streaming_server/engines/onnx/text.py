"""Text to sentences of bounded length, and phonemes to clauses. The time taken is linear in the text's length."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_SENTENCE_CHARACTERS = 300
"""A longer sentence is cut at the last clause, word or character that fits."""

_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s|$)|[。！？][”’」』）]*|\n\s*""")
_ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+",
        """mr mrs ms dr prof st mt ft gen gov sen rep capt lt col sgt cmdr rev hon pres supt cpl maj adm fr msgr jr sr
        ave blvd rd apt dept univ approx est vs vol fig ch pp cf no nos e.g i.e viz
        jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri sat sun""",
    )
)
_WORD_BEFORE = re.compile(r"[\w.]{1,10}$")
_ONLY_BEFORE_A_NUMBER = frozenset(["no", "nos", "fig", "ch", "pp", "vol", "mon", "sun", "sat", "fri", "mar"])
"""Words of their own as well: ``No. He left.``"""
_CLAUSE_END = re.compile(r"[,;:—–，、；：](?=\s|[^\x00-\x7f])")
_TINY = 8
"""A clause of fewer phonemes is joined with the next."""
_CLAUSE_BREAK = re.compile(r"(?<=[,;:—.!?…])[”)]? +")


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, at most `MAX_SENTENCE_CHARACTERS` each; they hold all but white space.

    A full stop after a title, an abbreviation or an initial, inside a number, or before a word in lower case does not
    end a sentence. A line break does, unless the next line goes on in lower case.
    """
    begin = 0
    for end in _END.finditer(text):
        if _ends_sentence(text, end):
            yield from _bounded(text[begin : end.end()].strip())
            begin = end.end()
    yield from _bounded(text[begin:].strip())


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
    if len(name) == 1 and name.isalpha() and name != "I":
        return False
    known = word[0].lower()
    return known not in _ABBREVIATIONS or (known in _ONLY_BEFORE_A_NUMBER and not following.isdigit())


def _bounded(sentence: str) -> Iterator[str]:
    while len(sentence) > MAX_SENTENCE_CHARACTERS:
        head = sentence[:MAX_SENTENCE_CHARACTERS]
        clauses = [match.end() for match in _CLAUSE_END.finditer(head, MAX_SENTENCE_CHARACTERS // 2)]
        cut = clauses[-1] if clauses else head.rfind(" ") + 1 or MAX_SENTENCE_CHARACTERS
        yield sentence[:cut].strip()
        sentence = sentence[cut:].lstrip()
    if sentence:
        yield sentence


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
