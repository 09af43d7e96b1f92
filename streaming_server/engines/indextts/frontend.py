"""The text front end of IndexTTS: normalisation, upper-casing, tokenisation and segmentation.

The time of every step is linear in the text. Long steps process bounded pieces, and a request can be cancelled between
two pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal
from unicodedata import category

import sentencepiece
from wetext import Normalizer

from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.text import pieces

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
"""A pinyin syllable with its tone, which is not normalised as a number. A single vowel matches in lower case only (A4
is not pinyin)."""

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
"""sentencepiece's prefix of a piece that begins a word."""
SENTENCE_ENDS = frozenset(mark + end for mark in ("", WORD) for end in (".", "!", "?", "...", "。", "！", "？", "…"))
COMMAS = frozenset((",", WORD + ",", "，", WORD + "，"))
HYPHENS = frozenset(("-",))
APOSTROPHES = frozenset(("'", WORD + "'"))


SpelledOutLanguage = Literal["zh", "en"]


WORDS_AT_ONCE = 256
"""Words tokenised per call; no token of the vocabulary spans two words."""

MAX_NORMALISED = 100
"""Maximum number of characters normalised per call; bounds the time of a call, after which a request can be
cancelled."""
MAX_DENSE = 30
"""Maximum number of non-letters normalised per call: wetext takes up to 1 ms for each."""
_QUOTES = "".join(
    character for character in map(chr, range(0x80, 0x10000)) if category(character) in {"Pi", "Pf", "Ps", "Pe"}
)
QUOTES = re.compile(f"([{_QUOTES}]+)")
"""Quotation marks and brackets outside ASCII. A text is cut at them: wetext takes up to 1 ms for each, and leaves them
as they are."""
LOWER_CASE = re.compile(r"[a-z\s]+")
SPOKEN_AS_WRITTEN = frozenset(" .!?,'\"-;:()[]{}<>`")


class TextNormalizer:
    """Converts numbers, dates and units to words with wetext."""

    def __init__(self) -> None:
        self._loaded: dict[SpelledOutLanguage, Normalizer] = {}

    def normalise(self, text: str, language: SpelledOutLanguage, check: Check = never_cancelled) -> str:
        """Normalise the text piece by piece; whitespace between the pieces is kept.

        Raises:
            Cancelled: raised by ``check``.
        """
        return "".join(self._normalised(text, language, check))

    def _normalised(self, text: str, language: SpelledOutLanguage, check: Check) -> Iterator[str]:
        for piece in bounded(text):
            check()
            for part in QUOTES.split(piece):
                words = part.strip()
                if not words or is_spoken_as_written(words):
                    yield part
                    continue
                before, behind = len(part) - len(part.lstrip()), len(part.rstrip())
                yield part[:before] + self._words(words, language) + part[behind:]

    def _words(self, text: str, language: SpelledOutLanguage) -> str:
        if language not in self._loaded:
            self._loaded[language] = Normalizer(lang=language, operator="tn")
        try:
            return str(self._loaded[language].normalize(text))
        except Exception:
            # wetext fails on blank lines, brackets, signs and more, and then on all words beside them.
            words = text.split()
            return " ".join(self._words(word, language) for word in words) if len(words) > 1 else text


def is_spoken_as_written(text: str) -> bool:
    """Whether wetext leaves a text as it is: one of lower-case words, or of punctuation that has no name."""
    return LOWER_CASE.fullmatch(text) is not None or all(
        character in SPOKEN_AS_WRITTEN
        or (character > "\x7f" and character != "§" and category(character).startswith("P"))
        for character in text
    )


def bounded(text: str) -> Iterator[str]:
    """Split a text into pieces for normalisation."""
    for piece in pieces(text, MAX_NORMALISED):
        dense = sum(not character.isalpha() for character in piece) > MAX_DENSE
        yield from pieces(piece, MAX_DENSE) if dense else (piece,)


class Frontend:
    """Converts text to token ids of the model's sentencepiece vocabulary."""

    def __init__(self, model: Path) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self._normalizer = TextNormalizer()

    @property
    def vocabulary_size(self) -> int:
        return int(self._pieces.vocab_size())

    def normalise(self, text: str, check: Check = never_cancelled) -> str:
        """Convert numbers, dates and units to words and full-width punctuation to ASCII; keep pinyin syllables."""
        language: SpelledOutLanguage = "zh" if IS_CJK.search(text) else "en"
        parts, end = [], 0
        for syllable in PINYIN.finditer(text):
            between = self._normalizer.normalise(text[end : syllable.start()], language, check)
            parts += [between, spell(*syllable.groups())]
            end = syllable.end()
        parts.append(self._normalizer.normalise(text[end:], language, check))
        return " ".join(part for part in parts if part).translate(PUNCTUATION)

    def tokens(self, text: str, check: Check = never_cancelled) -> list[str]:
        """Tokenise normalised text in upper case, with each CJK character as a separate word."""
        words = AROUND_CJK.sub(r" \1 ", text).upper().split()
        tokens: list[str] = []
        for start in range(0, len(words), WORDS_AT_ONCE):
            check()
            tokens += self._pieces.encode(" ".join(words[start : start + WORDS_AT_ONCE]), out_type=str)
        return tokens

    def segments(
        self, text: str, longest: int, opening: int | None = None, check: Check = never_cancelled
    ) -> list[list[int]]:
        """Normalise and tokenise a text and split it into segments of at most ``longest`` tokens.

        ``opening`` limits the first segment further, if a sentence or clause ends within that many tokens.

        Raises:
            Cancelled: raised by ``check``.
        """
        segments = split(self.tokens(self.normalise(text, check), check), longest)
        if opening is not None and segments and len(segments[0]) > opening:
            first, *rest = split(segments[0], opening)
            if first[-1] in SENTENCE_ENDS | COMMAS:
                segments[:1] = [first, [token for piece in rest for token in piece]]
        return [self._pieces.piece_to_id(segment) for segment in segments]


def spell(syllable: str, tone: str) -> str:
    """Spell a pinyin syllable as in the vocabulary: upper case, with V for ü, also for u after j, q and x."""
    syllable = syllable.upper().replace("Ü", "V")
    if syllable[0] in "JQX":
        syllable = syllable[0] + syllable[1:].replace("U", "V", 1)
    return syllable + tone


def split(tokens: Sequence[str], longest: int) -> list[list[str]]:
    """Split at sentence ends, pieces that are too long at commas, hyphens or by length, and merge short neighbours."""
    return cut(tokens, longest, [SENTENCE_ENDS, COMMAS, HYPHENS])


def cut(tokens: Sequence[str], longest: int, marks: Sequence[frozenset[str]]) -> list[list[str]]:
    """``split`` at the first kind of marks; the other kinds split pieces that are still too long.

    A piece of one or two tokens is not split off. An apostrophe directly after a mark belongs to both pieces, as in the
    official implementation.
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
    """Split a piece that is too long at the first kind of marks that it contains, else every ``longest`` tokens."""
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
