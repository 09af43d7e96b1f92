"""The text front ends of 2.0 and 2.5, which convert text to segments of token ids.

2.0 has the front end of 1.5. 2.5 has a multilingual byte-pair vocabulary (tiktoken), a language tag before each
segment, and pronunciation marks ``<word|PRON>``. The time of every step is linear in the text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from streaming_server.engines.indextts.frontend import Frontend, TextNormalizer
from streaming_server.engines.indextts2.languages import COMMON, ROWS, language_of
from streaming_server.engines.indextts2.vocabulary import read_vocabulary
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.text import pieces

logger = logging.getLogger(__name__)

MAX_TOKEN_CHARACTERS = 64
"""A text with more characters per allowed token than this is too long and is not tokenised."""

UNSAID = frozenset((0, 1))
"""START and STOP of the model; ``!`` and ``"`` in the vocabulary. They are removed, as in the official
implementation."""

SENTENCE_END = re.compile(
    r"(?<=[.!?…。！？؟])(?![.!?…。！？؟])(?=\s|[^\x00-\x7f])|(?<=[…。！？؟])(?![.!?…。！？؟])|(?<!\s)(?=\s*\n)"
)
CLAUSE_END = re.compile(r"(?<=[,;:，、；：])(?![,;:，、；：])(?=\s|[^\x00-\x7f])|(?<=[，、；：])(?![,;:，、；：])")

ENDS = (SENTENCE_END, CLAUSE_END)
"""Patterns without width, each of which matches before white space or between two other characters."""
MARKS = tuple(".!?…。！？؟,;:，、；：")

MARK_OR_BLANK = re.compile(r"(<\|SPECIAL_TOKEN_[12]\|>).*?\1|\s+")
MARK = re.compile(r"<([^<>|]{1,100})\|([^<>|]{1,100})>")
KANA = re.compile("[\u3040-\u30ff]+")
CASES: dict[str, Callable[[str], str]] = {"zh": str.lower, "en": str.lower, "ja": str.lower, "es": str.upper}
SPELLED_OUT: dict[str, Literal["zh", "en"]] = {"zh": "zh", "en": "en"}
"""Languages in which numbers, dates and units are converted to words; other languages are not normalised."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text that is decoded at once."""

    ids: list[int]
    language: int | None = None
    """A row of 2.5's language embedding."""


def halves(text: str) -> list[str]:
    """Split a text in two between words, or a single word at its middle; a pronunciation mark is not split."""
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    middle = (start + end) // 2
    found = list(MARK_OR_BLANK.finditer(text, start, end))
    cuts = [blank.start() for blank in found if blank[1] is None]
    cuts = cuts or [place for mark in found if mark.start() < middle < mark.end() for place in mark.span()] or [middle]
    cuts = [cut for cut in cuts if start < cut < end]
    if not cuts:
        return [text]
    cut = min(cuts, key=lambda place: abs(place - middle))
    return [text[:cut], text[cut:]]


class Reader(Protocol):
    @property
    def vocabulary_size(self) -> int: ...

    def segments(
        self, text: str, longest: int, opening: int | None = None, check: Check = never_cancelled
    ) -> list[Segment]:
        """Split a text into segments of at most ``longest`` tokens.

        ``opening`` limits the first segment further, if a sentence or clause ends within that many tokens.

        Raises:
            Cancelled: raised by ``check``.
        """


class PlainReader:
    """2.0: the sentencepiece vocabulary of 1.5, no language."""

    def __init__(self, model: Path) -> None:
        self._frontend = Frontend(model)

    @property
    def vocabulary_size(self) -> int:
        return self._frontend.vocabulary_size

    def segments(
        self, text: str, longest: int, opening: int | None = None, check: Check = never_cancelled
    ) -> list[Segment]:
        return [Segment(ids) for ids in self._frontend.segments(text, longest, opening, check)]


class LanguageReader:
    """2.5: tiktoken's vocabulary; ``language`` is one of ``ROWS``, or None to detect it in each text.

    Raises:
        ValueError: the file is not a vocabulary.
    """

    def __init__(self, vocabulary: Path, language: str | None = None) -> None:
        self._language = language
        self._tokens = read_vocabulary(vocabulary)
        self._normalizer = TextNormalizer()
        self._japanese = JapaneseWords()

    @property
    def vocabulary_size(self) -> int:
        return self._tokens.n_vocab

    def segments(
        self, text: str, longest: int, opening: int | None = None, check: Check = never_cancelled
    ) -> list[Segment]:
        language = self._language or language_of(MARK.sub(r"\1", text))
        row = ROWS.get(language, COMMON)
        parts = self._merged(self.prepare(text, language, check), language, longest, check)
        if opening is not None and parts and len(self._ids(parts[0], language)) > opening:
            first, *rest = self._merged(parts[0], language, opening, check)
            if first.rstrip().endswith(MARKS):
                parts[:1] = [first, "".join(rest)]
        return [Segment(self._ids(part, language), row) for part in parts]

    def prepare(self, text: str, language: str, check: Check = never_cancelled) -> str:
        """Prepare a text for tokenisation: normalise numbers and case, and convert pronunciation marks."""
        parts, end = [], 0
        for mark in MARK.finditer(text):
            parts += [self._plain(text[end : mark.start()], language, check), pronounced(mark[1], mark[2], language)]
            end = mark.end()
        return "".join([*parts, self._plain(text[end:], language, check)])

    def _plain(self, text: str, language: str, check: Check) -> str:
        """Prepare the text between two marks; whitespace at its ends is kept, because it separates words."""
        if not text.strip():
            return text
        if language in SPELLED_OUT:
            text = self._normalizer.normalise(text, SPELLED_OUT[language], check)
        if language == "ja":
            text = self._japanese.separate(text, check)
        return CASES.get(language, str)(text)

    def _merged(self, text: str, language: str, longest: int, check: Check) -> list[str]:
        """Split a text and join neighbouring pieces whose tokens fit into ``longest``."""
        merged: list[str] = []
        for piece in self._pieces(text, language, longest, check):
            if merged and len(self._ids(merged[-1] + piece, language)) <= longest:
                merged[-1] += piece
            else:
                merged.append(piece)
        return merged

    def _ids(self, text: str, language: str) -> list[int]:
        written = f"<|{language}|> {text.strip()}"
        return [token for token in self._tokens.encode(written, allowed_special="all") if token not in UNSAID]

    def _pieces(
        self, text: str, language: str, longest: int, check: Check, marks: tuple[re.Pattern[str], ...] = ENDS
    ) -> Iterator[str]:
        """Split a text into sentences, long sentences into clauses, and long clauses into halves."""
        check()
        parts = [part for part in (marks[0].split(text) if marks else halves(text)) if part.strip()]
        if self._fits(text, language, longest) or (not marks and len(parts) == 1):
            yield text
            return
        for part in parts:
            yield from self._pieces(part, language, longest, check, marks[1:])

    def _fits(self, text: str, language: str, longest: int) -> bool:
        """Whether a text has at most ``longest`` tokens; one that is far too long is not tokenised."""
        return len(text) <= longest * MAX_TOKEN_CHARACTERS and len(self._ids(text, language)) <= longest


def pronounced(word: str, how: str, language: str) -> str:
    """Convert a pronunciation mark: kana are inserted as text, pinyin and phonemes between special tokens."""
    if KANA.fullmatch(how):
        return how
    special = f"<|SPECIAL_TOKEN_{2 if language in {'zh', 'yue', 'zh/en'} else 1}|>"
    return f"{special}{how}{special}"


class JapaneseWords:
    """Separates Japanese words by spaces, as in the training data of the model. Requires fugashi."""

    MAX_CHARACTERS = 200
    """Maximum number of characters per call."""

    def __init__(self) -> None:
        self._tagger: Callable[[str], Any] | None = None
        self._is_loaded = False

    def separate(self, text: str, check: Check = never_cancelled) -> str:
        """Insert spaces between words; return the text unchanged if fugashi is not installed."""
        tagger = self._load()
        if tagger is None:
            return text
        words = []
        for piece in pieces(text, self.MAX_CHARACTERS):
            check()
            words += [str(word) for word in tagger(piece.strip())]
        before, behind = len(text) - len(text.lstrip()), len(text.rstrip())
        return text[:before] + " ".join(words) + text[behind:]

    def _load(self) -> Callable[[str], Any] | None:
        if self._is_loaded:
            return self._tagger
        self._is_loaded = True
        try:
            import fugashi

            self._tagger = fugashi.Tagger()
        except (ImportError, RuntimeError):
            logger.warning("Japanese word segmentation not available, quality is reduced: run scripts/install japanese")
        return self._tagger
