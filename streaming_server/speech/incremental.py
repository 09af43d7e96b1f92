"""Incremental text: the segments of a text that arrives in pieces, as requests for the engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from streaming_server.domain import SpeechRequest, TextPieces, TextSignal
from streaming_server.errors import ForbiddenCharacter, TextTooLong
from streaming_server.segmentation import Segmenter
from streaming_server.text import forbidden_character


async def parts(request: SpeechRequest, max_characters: int) -> AsyncGenerator[SpeechRequest, None]:
    """Yield what the engine synthesises at once: the request itself, or one for each segment of an incremental text.

    Raises:
        ForbiddenCharacter, TextTooLong: as `segments`.
    """
    if request.pieces is None:
        yield request
        return
    async with aclosing(segments(request.pieces, max_characters)) as found:
        async for segment in found:
            yield replace(request, text=segment, pieces=None)


async def segments(pieces: TextPieces, max_characters: int) -> AsyncGenerator[str, None]:
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
    """The same text as an incremental one, so that the times of each of its segments are known."""
    return replace(request, text="", pieces=_whole(request.text))


async def _whole(text: str) -> TextPieces:
    yield text
