"""Text as the model reads it: normalised, upper-cased, tokenised, cut into segments.

This module does not know torch, audio or requests; it reads one file, the sentencepiece model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import sentencepiece
from wetext import Normalizer

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
IS_CJK = re.compile(f"[{CJK}]")
AROUND_CJK = re.compile(f"([{CJK}])")

PINYIN = re.compile(
    r"(?<![A-Za-z])("
    r"(?i:(?:[zcs]h|[bpmfdtnlgkhjqxrzcsyw])"
    r"(?:i?ang|i?ong|uang|u?ai|i?ao|ian|uan|üan|van|[aeiuüv]ng?|[iuüv]?e|i?ou|i[au]|u[aio]|[eu]i|[aiouüv])"
    r"|e[rin]|a[io]|a?ng?|ang|eng|ou)"
    r"|[aeo])([1-5])(?![A-Za-z0-9])"
)
"""A syllable with its tone: said as it is spelt, not as a number. A bare vowel counts in lower case only (not A4)."""

PUNCTUATION = str.maketrans(
    {
        "，": ",", "、": ",", "；": ",", ";": ",", "：": ",", ":": ",",
        "。": ".", "．": ".", "！": "!", "？": "?", "…": "...",
        "—": "-", "–": "-", "～": "-", "~": "-", "·": "-",
        "“": "'", "”": "'", "‘": "'", "’": "'", '"': "'",
        "（": "'", "）": "'", "(": "'", ")": "'", "《": "'", "》": "'", "【": "'", "】": "'", "[": "'", "]": "'",
        "「": "'", "」": "'", "『": "'", "』": "'",
    }
)  # fmt: skip

WORD = "▁"
"""What sentencepiece writes in front of a piece that begins a word."""
SENTENCE_ENDS = frozenset(mark + end for mark in ("", WORD) for end in (".", "!", "?", "...", "。", "！", "？", "…"))
COMMAS = frozenset((",", WORD + ",", "，", WORD + "，"))
HYPHENS = frozenset(("-",))
APOSTROPHES = frozenset(("'", WORD + "'"))


SpelledOutLanguage = Literal["zh", "en"]


@cache
def normalizer(language: SpelledOutLanguage) -> Normalizer:
    return Normalizer(lang=language, operator="tn")


def spelled_out(text: str, language: SpelledOutLanguage) -> str:
    """Numbers, dates and units as words; what the normaliser fails at stays as it is written."""
    try:
        return str(normalizer(language).normalize(text))
    except Exception:  # wetext fails at blank lines, brackets, signs and more, and then at all that stands beside them
        words = text.split()
        return " ".join(spelled_out(word, language) for word in words) if len(words) > 1 else text


class Frontend:
    """Text → token ids of the model's sentencepiece vocabulary."""

    def __init__(self, model: Path) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))

    @property
    def vocabulary_size(self) -> int:
        return int(self._pieces.vocab_size())

    def normalise(self, text: str) -> str:
        """Numbers, dates and units as words; full-width marks as plain ones; pinyin syllables untouched."""
        language: SpelledOutLanguage = "zh" if IS_CJK.search(text) else "en"
        parts, end = [], 0
        for syllable in PINYIN.finditer(text):
            parts += [spelled_out(text[end : syllable.start()], language), spell(*syllable.groups())]
            end = syllable.end()
        parts.append(spelled_out(text[end:], language))
        return " ".join(part for part in parts if part).translate(PUNCTUATION)

    def tokens(self, text: str) -> list[str]:
        """Normalised text → sentencepiece tokens: each CJK character a word of its own, all in upper case."""
        words = AROUND_CJK.sub(r" \1 ", text).upper().split()
        tokens: list[str] = self._pieces.encode(" ".join(words), out_type=str)
        return tokens

    def segments(self, text: str, longest: int, opening: int | None = None) -> list[list[int]]:
        """Any text → the ids of its segments, each of at most ``longest`` tokens.

        With ``opening`` the first one has at most so many, where a sentence or clause ends that early.
        """
        segments = split(self.tokens(self.normalise(text)), longest)
        if opening is not None and segments and len(segments[0]) > opening:
            first, *rest = split(segments[0], opening)
            if first[-1] in SENTENCE_ENDS | COMMAS:
                segments[:1] = [first, [token for piece in rest for token in piece]]
        return [self._pieces.piece_to_id(segment) for segment in segments]


def spell(syllable: str, tone: str) -> str:
    """A pinyin syllable as the vocabulary spells it: upper case, and V for the ü that is written u after j, q, x."""
    syllable = syllable.upper().replace("Ü", "V")
    if syllable[0] in "JQX":
        syllable = syllable[0] + syllable[1:].replace("U", "V", 1)
    return syllable + tone


def split(tokens: Sequence[str], longest: int) -> list[list[str]]:
    """Cut after sentence ends; what is too long by comma, else by hyphen, else by length; merge short neighbours."""
    return cut(tokens, longest, [SENTENCE_ENDS, COMMAS, HYPHENS])


def cut(tokens: Sequence[str], longest: int, marks: Sequence[frozenset[str]]) -> list[list[str]]:
    """``split`` by the first of the marks; the others serve for pieces that stay too long.

    A piece of one or two tokens is not cut off. An apostrophe right after a mark stays with it and is said again in
    front of the next piece, as in the public program.
    """
    pieces: list[list[str]] = []
    piece: list[str] = []
    for token, following in pairwise([*tokens, ""]):
        piece.append(token)
        if len(piece) > longest:
            pieces += shorten(piece, longest, marks[1:])
            piece = []
        elif token in marks[0] and len(piece) > 2:
            pieces.append([*piece, following] if following in APOSTROPHES else piece)
            piece = []
    if piece:
        pieces.append(piece)
    return merge(pieces, longest)


def shorten(piece: list[str], longest: int, marks: Sequence[frozenset[str]]) -> list[list[str]]:
    """Cut a piece that is too long by the first marks it has any of, else every ``longest`` tokens."""
    for index, those in enumerate(marks):
        if not those.isdisjoint(piece):
            return cut(piece, longest, marks[index:])
    return [piece[start : start + longest] for start in range(0, len(piece), longest)]


def merge(pieces: Sequence[list[str]], longest: int) -> list[list[str]]:
    merged: list[list[str]] = []
    for piece in pieces:
        if merged and len(merged[-1]) + len(piece) <= longest:
            merged[-1] = merged[-1] + piece
        else:
            merged.append(piece)
    return merged
