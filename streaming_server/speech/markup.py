"""Text in spans: pauses within a text, and the prosody of marked-up text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from unicodedata import east_asian_width

from streaming_server.domain import Span, SpeechRequest, pronunciations_within
from streaming_server.errors import InvalidRequest
from streaming_server.text import PAUSE

MAX_PAUSE_S = 10.0
MAX_PAUSES_S = 300.0
"""All pauses of one text together."""
_OPENING, _CLOSING = "([{“‘«", ".,;:!?…)]}”’»%"
"""Punctuation that belongs to the word after it, and to the one before it."""


def spans_of(request: SpeechRequest) -> Sequence[Span]:
    """The spans of a request; those of a plain text are cut at its pauses."""
    return request.spans or with_pauses([Span(request.text, pronunciations=request.pronunciations)])


def with_pauses(spans: Sequence[Span]) -> Sequence[Span]:
    """Cut spans at the pauses that their texts name, such as ``[pause 0.5s]``, each and all within the limits."""
    if not any("[" in span.text for span in spans):
        return spans
    cut = [part for span in spans for part in _cut(span)]
    ends = accumulate(part.pause_s for part in cut)
    return [
        part if end <= MAX_PAUSES_S else replace(part, pause_s=max(0.0, part.pause_s - (end - MAX_PAUSES_S)))
        for part, end in zip(cut, ends, strict=True)
    ]


def placed(spans: Sequence[Span]) -> Sequence[Span]:
    """Spans with their places in the text that `joined` makes of them."""
    found: list[Span] = []
    end, text, has_pause = 0, "", False
    for span in spans:
        if has_pause and are_joined(text, span.text):
            end += 1
        found.append(replace(span, start=end))
        end += len(span.text)
        has_pause = bool(span.pause_s) or (has_pause and not span.text)
        text = span.text or text
    return found


def joined(spans: Sequence[Span]) -> str:
    """The text of placed spans, with a blank between words that a pause divides."""
    text = ""
    for span in spans:
        text = text.ljust(span.start) + span.text
    return text


def are_joined(before: str, after: str) -> bool:
    """Whether two texts, one after another, lack the blank between their words; wide characters need none."""
    last, first = before[-1:], after[:1]
    is_word = bool(last.strip() and first.strip()) and last not in _OPENING and first not in _CLOSING
    return is_word and east_asian_width(last) not in "WF"


def without_pauses(text: str) -> str:
    """The text with spaces in place of each pause; every other character keeps its place."""
    return PAUSE.sub(lambda pause: " " * len(pause[0]), text)


def check_pauses(text: str, field: str, place: str = "body", before_s: float = 0.0) -> float:
    """Return the duration of the pauses of a text, and of those before it.

    Raises:
        InvalidRequest: a pause is too long, or all of them together are.
    """
    seconds = [_seconds(found) for found in PAUSE.finditer(text)]
    if seconds and max(seconds) > MAX_PAUSE_S:
        message = f"{field} has a pause of {max(seconds):g} s; valid range: 0-{MAX_PAUSE_S:g} s"
        raise InvalidRequest(message, field, place)
    total_s = before_s + sum(seconds)
    check_total(total_s, field, place)
    return total_s


def check_total(seconds: float, field: str, place: str = "body") -> None:
    """
    Raises:
        InvalidRequest: this is longer than all pauses of a text may be.
    """
    if seconds > MAX_PAUSES_S:
        message = f"the pauses of {field} last {seconds:g} s; at most {MAX_PAUSES_S:g} s are allowed"
        raise InvalidRequest(message, field, place)


def _cut(span: Span) -> Iterator[Span]:
    at = 0
    for pause in PAUSE.finditer(span.text):
        yield replace(_part(span, at, pause.start()), pause_s=min(_seconds(pause), MAX_PAUSE_S))
        at = pause.end()
    yield _part(span, at, len(span.text))


def _part(span: Span, begin: int, end: int) -> Span:
    """A part of a span, with the pause behind the span."""
    return replace(
        span,
        text=span.text[begin:end],
        start=span.start + begin,
        pronunciations=pronunciations_within(span.pronunciations, begin, end),
        bookmarks=tuple(
            replace(mark, character=mark.character - begin) for mark in span.bookmarks if begin <= mark.character <= end
        ),
    )


def _seconds(pause: re.Match[str]) -> float:
    return float(pause[1]) / (1000 if pause[2].lower() == "ms" else 1)
