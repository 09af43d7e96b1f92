"""Incremental text: the segments of a text that arrives in pieces, as requests for the engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from streaming_server.domain import (
    PronouncedText,
    Pronunciation,
    SpeechRequest,
    TextPieces,
    TextSignal,
    pronunciations_within,
)
from streaming_server.errors import ForbiddenCharacter, TextTooLong
from streaming_server.segmentation import Segmenter, ends_line
from streaming_server.speech.markup import check_pauses
from streaming_server.text import forbidden_character


async def parts(request: SpeechRequest, max_characters: int) -> AsyncGenerator[SpeechRequest, None]:
    """Yield what the engine synthesises at once: the request itself, or one for each segment of an incremental text.

    Raises:
        ForbiddenCharacter, TextTooLong: as `segments`.
        InvalidRequest: a pause is too long, or all of them together are.
    """
    if request.pieces is None:
        yield request
        return
    given, pauses_s = _Given(), 0.0
    async with aclosing(segments(given.recorded(request.pieces), max_characters)) as found:
        async for segment in found:
            pauses_s = check_pauses(segment, "text", before_s=pauses_s)
            pronunciations, ends_line = given.of(segment)
            text = segment + "\n" if ends_line else segment
            yield replace(request, text=text, pieces=None, pronunciations=pronunciations)


class _Given:
    """The pronunciations and line breaks of an incremental text, found again in its segments."""

    def __init__(self) -> None:
        self._text = ""
        """What no segment has had so far."""
        self._line = ""
        """What segments have had of the line that it continues."""
        self._found: list[Pronunciation] = []
        """Places in ``_text``."""

    async def recorded(self, pieces: TextPieces) -> AsyncGenerator[str | TextSignal, None]:
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, TextSignal):
                    yield piece
                    continue
                text = piece.text if isinstance(piece, PronouncedText) else piece
                if isinstance(piece, PronouncedText):
                    self._found.append(Pronunciation(len(self._text), len(self._text) + len(text), piece.ipa))
                self._text += text
                yield text

    def of(self, segment: str) -> tuple[tuple[Pronunciation, ...], bool]:
        """Those of the next segment, and whether a line ends there; segments hold all of the text but white space."""
        begin = self._text.index(segment)
        end = begin + len(segment)
        found = pronunciations_within(self._found, begin, end)
        known = self._line + self._text
        at_line_end = ends_line(known, len(self._line) + end)
        self._line = known[: len(self._line) + end].rpartition("\n")[2]
        self._text = self._text[end:]
        self._found = [*pronunciations_within(self._found, end, end + len(self._text))]
        return found, at_line_end


async def segments(pieces: AsyncGenerator[str | TextSignal, None], max_characters: int) -> AsyncGenerator[str, None]:
    """Yield each segment as soon as no further piece can change it; closes ``pieces``.

    The next piece is taken when all segments so far have been consumed.

    Raises:
        ForbiddenCharacter: a piece has a character that cannot be synthesised.
        TextTooLong: all pieces together have more than ``max_characters``.
    """
    segmenter = Segmenter()
    characters = 0
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, TextSignal):
                found = segmenter.flush()
            else:
                if forbidden := forbidden_character(piece):
                    name, position = forbidden
                    raise ForbiddenCharacter(name, characters + position)
                characters += len(piece)
                if characters > max_characters:
                    raise TextTooLong(characters, max_characters)
                found = segmenter.push(piece)
            for segment in found:
                yield segment
    for segment in segmenter.flush():
        yield segment


def by_sentences(request: SpeechRequest) -> SpeechRequest:
    """The same text as an incremental one, so that the times of each of its segments are known.

    Marked-up texts and scripts are returned as they are.
    """
    if request.spans or request.script:
        return request
    return replace(request, text="", pieces=_whole(request.text, request.pronunciations), pronunciations=())


async def _whole(text: str, given: Sequence[Pronunciation]) -> TextPieces:
    at = 0
    for each in given:
        yield text[at : each.start]
        yield PronouncedText(text[each.start : each.end], each.ipa)
        at = each.end
    yield text[at:]
