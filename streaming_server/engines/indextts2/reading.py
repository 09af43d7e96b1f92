"""Text as the GPTs of 2.0 and 2.5 read it: segments of token ids, each in a language.

2.0 reads as 1.5 does. 2.5 has byte-pair tokens of many languages (tiktoken's), a tag in front of each segment, and
marks that tell how a word is said: ``<word|PRON>``. This module does not know torch, audio or requests.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from streaming_server.engines.indextts.frontend import Frontend, spelled_out
from streaming_server.engines.indextts2.languages import COMMON, ROWS, language_of
from streaming_server.engines.indextts2.vocabulary import read_vocabulary

logger = logging.getLogger(__name__)

UNSAID = frozenset((0, 1))
"""START and STOP in the model, ``!`` and ``"`` in the vocabulary: left out of a text, as in the public program."""

SENTENCE_END = re.compile(r"(?<=[.!?…。！？؟])(?=\s|[^\x00-\x7f])|(?<=[…。！？؟])|\n+")
CLAUSE_END = re.compile(r"(?<=[,;:，、；：])(?=\s|[^\x00-\x7f])|(?<=[，、；：])")

ENDS = (SENTENCE_END, CLAUSE_END)
MARKS = tuple(".!?…。！？؟,;:，、；：")

SPOKEN_MARK = re.compile(r"(<\|SPECIAL_TOKEN_[12]\|>).*?\1")
MARK = re.compile(r"<([^<>|]+)\|([^<>|]+)>")
KANA = re.compile("[\u3040-\u30ff]+")
CASES: dict[str, Callable[[str], str]] = {"zh": str.lower, "en": str.lower, "ja": str.lower, "es": str.upper}
SPELLED_OUT: dict[str, Literal["zh", "en"]] = {"zh": "zh", "en": "en"}
"""Languages whose numbers, dates and units are turned into words here; of the others they are read as written."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What is decoded in one go."""

    ids: list[int]
    language: int | None = None
    """A row of 2.5's language embedding."""


def halves(text: str) -> list[str]:
    """Two halves, parted beside a mark rather than in it; the text itself where it is one mark."""
    middle = len(text) // 2
    inside = [range(mark.start() + 1, mark.end()) for mark in SPOKEN_MARK.finditer(text)]
    cuts = [place for place in range(1, len(text)) if not any(place in span for span in inside)]
    if not cuts:
        return [text]
    cut = min(cuts, key=lambda place: abs(place - middle))
    return [text[:cut], text[cut:]]


class Reader(Protocol):
    @property
    def vocabulary_size(self) -> int: ...

    def segments(self, text: str, longest: int, opening: int | None = None) -> list[Segment]:
        """Any text → its segments, each of at most ``longest`` tokens.

        With ``opening`` the first one has at most so many, where a sentence or clause ends that early.
        """


class PlainReader:
    """2.0: the sentencepiece vocabulary of 1.5, no language."""

    def __init__(self, model: Path) -> None:
        self._frontend = Frontend(model)

    @property
    def vocabulary_size(self) -> int:
        return self._frontend.vocabulary_size

    def segments(self, text: str, longest: int, opening: int | None = None) -> list[Segment]:
        return [Segment(ids) for ids in self._frontend.segments(text, longest, opening)]


class LanguageReader:
    """2.5: tiktoken's vocabulary; ``language`` is one of ``ROWS``, or None to tell it from each text.

    Raises:
        ValueError: the file is no vocabulary.
    """

    def __init__(self, vocabulary: Path, language: str | None = None) -> None:
        self._language = language
        self._tokens = read_vocabulary(vocabulary)

    @property
    def vocabulary_size(self) -> int:
        return self._tokens.n_vocab

    def segments(self, text: str, longest: int, opening: int | None = None) -> list[Segment]:
        language = self._language or language_of(MARK.sub(r"\1", text))
        row = ROWS.get(language, COMMON)
        pieces = self._merged(prepared(text, language), language, longest)
        if opening is not None and pieces and len(self._ids(pieces[0], language)) > opening:
            first, *rest = self._merged(pieces[0], language, opening)
            if first.rstrip().endswith(MARKS):
                pieces[:1] = [first, "".join(rest)]
        return [Segment(self._ids(piece, language), row) for piece in pieces]

    def _merged(self, text: str, language: str, longest: int) -> list[str]:
        merged: list[str] = []
        for piece in self._pieces(text, language, longest):
            if merged and len(self._ids(merged[-1] + piece, language)) <= longest:
                merged[-1] += piece
            else:
                merged.append(piece)
        return merged

    def _ids(self, text: str, language: str) -> list[int]:
        written = f"<|{language}|> {text.strip()}"
        return [token for token in self._tokens.encode(written, allowed_special="all") if token not in UNSAID]

    def _pieces(
        self, text: str, language: str, longest: int, marks: tuple[re.Pattern[str], ...] = ENDS
    ) -> Iterator[str]:
        """Sentences; what is too long by clauses, and what still is by halves."""
        parts = [part for part in (marks[0].split(text) if marks else halves(text)) if part.strip()]
        if len(self._ids(text, language)) <= longest or (not marks and len(parts) == 1):
            yield text
            return
        for part in parts:
            yield from self._pieces(part, language, longest, marks[1:])


def prepared(text: str, language: str) -> str:
    """A text as it is to be tokenised: words for numbers, letters in their case, marks as the model knows them."""
    parts, end = [], 0
    for mark in MARK.finditer(text):
        parts += [plain(text[end : mark.start()], language), pronounced(mark[1], mark[2], language)]
        end = mark.end()
    return "".join([*parts, plain(text[end:], language)])


def plain(text: str, language: str) -> str:
    """What stands between marks; the blanks at its ends stay, for they part words."""
    words = text.strip()
    if not words:
        return text
    if language in SPELLED_OUT:
        words = spelled_out(words, SPELLED_OUT[language])
    if language == "ja":
        words = " ".join(words_of_japanese(words))
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return before + CASES.get(language, str)(words) + after


def pronounced(word: str, how: str, language: str) -> str:
    """A mark: kana stand for themselves, pinyin and phonemes between special tokens, the second of them in Chinese."""
    if KANA.fullmatch(how):
        return how
    special = f"<|SPECIAL_TOKEN_{2 if language in {'zh', 'yue', 'zh/en'} else 1}|>"
    return f"{special}{how}{special}"


@cache
def japanese_tagger() -> Callable[[str], Any] | None:
    try:
        import fugashi

        tagger: Callable[[str], Any] = fugashi.Tagger()
    except (ImportError, RuntimeError):
        logger.warning(
            "Japanese is read without word boundaries, which the model was trained with: run scripts/install japanese"
        )
        return None
    return tagger


def words_of_japanese(text: str) -> list[str]:
    """The words of a text; the text itself where nothing is installed that could tell."""
    tagger = japanese_tagger()
    return [text] if tagger is None else [str(word) for word in tagger(text)]
