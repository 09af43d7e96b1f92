"""One context of a session: a text that is being written, and its audio."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import anyio

from streaming_server.api.channel import Channel
from streaming_server.api.elevenlabs.alignment import milliseconds
from streaming_server.api.elevenlabs.settings import Delivery
from streaming_server.api.requests import RequestBuilder
from streaming_server.audio.encoders import AudioEncoder
from streaming_server.domain import PronouncedText, TextPieces, TextSignal, Voice
from streaming_server.errors import ForbiddenCharacter, SpeechServerError, TextTooLong
from streaming_server.segmentation import ends_in_mark, is_certain_end, is_sentence, needs_space
from streaming_server.speech.inline_tags import InlineTags
from streaming_server.speech.stream import SpeechStats, SpeechStream, StreamState
from streaming_server.speech.timeline import Passage
from streaming_server.text import forbidden_character

END_OF_TURN_S = 0.1
"""A ``close_context`` so soon after a flush ends the turn; later, after a flush with text, it interrupts it."""

_TAIL_CHARACTERS = 40


class Context:
    """A stream of its own within the session."""

    def __init__(
        self,
        requests: RequestBuilder,
        voice: Voice,
        how: Delivery,
        encoder: AudioEncoder,
        channel: Channel,
        fields: Mapping[str, Any],
        *,
        language: str,
        gets_sentences: bool,
        counts_from_start: bool,
        reads_tags: bool,
    ) -> None:
        """
        Args:
            requests: makes its request.
            voice: speaks.
            how: the settings of its first message.
            encoder: a new one.
            channel: where its messages go.
            fields: part of each of its messages.
            language: of the text; empty for the engine's choice.
            gets_sentences: a message that ends in a sentence's mark is whole.
            counts_from_start: times are from the context's start, in place of the previous alignment's end.
            reads_tags: the text may have tags, as `InlineTags` reads them.
        """
        self._service = requests.service
        self._max_characters = requests.settings.max_text_characters
        self._request = requests.build(self._text(), [voice], how.generation, None, speed=how.speed, language=language)
        self._encoder = encoder
        self._channel = channel
        self._fields = fields
        self._gets_sentences = gets_sentences
        self._counts_from_start = counts_from_start
        self._tags = InlineTags() if reads_tags else None
        self._pieces: asyncio.Queue[str | PronouncedText | TextSignal | None] = asyncio.Queue()
        self._characters = 0
        self._last: str | TextSignal = ""
        self._tail = ""
        self._flushed_s: float | None = None
        """When the newest text was flushed; None where text came after the last flush."""
        self._is_bare_flush = False
        self._scope = anyio.CancelScope()
        self._stream: SpeechStream | None = None
        self._is_sending = False
        self.is_ended = False
        """Whether its text is complete."""
        self.finished = asyncio.Event()
        """Set when its last message has been sent."""
        self.stats = SpeechStats()

    @property
    def is_busy(self) -> bool:
        """Whether it has anything to do but wait for text."""
        stream = self._stream
        is_speaking = stream is None or stream.state is not StreamState.AWAITING_TEXT
        return is_speaking or self._is_sending or not self._pieces.empty()

    @property
    def is_cancelled(self) -> bool:
        return self._scope.cancel_called

    def write(self, text: str) -> None:
        """Append text.

        Raises:
            ForbiddenCharacter, TextTooLong: as for a whole text.
            InvalidRequest: a tag has a value that is not valid.
        """
        if forbidden := forbidden_character(text):
            raise ForbiddenCharacter(*forbidden)
        self._characters += len(text)
        if self._characters > self._max_characters:
            raise TextTooLong(self._characters, self._max_characters)
        if text.strip():
            self._flushed_s = None
        for piece in self._tags.push(text) if self._tags else [text]:
            self._append(piece)
        if self._gets_sentences and ends_in_mark(text):
            self._put_flush()

    def _append(self, piece: str | PronouncedText) -> None:
        text = piece.text if isinstance(piece, PronouncedText) else piece
        if isinstance(self._last, str) and needs_space(self._last, text):
            self._pieces.put_nowait(" ")
        self._last = text
        self._pieces.put_nowait(piece)
        self._tail = (self._tail + text)[-_TAIL_CHARACTERS:]
        # A client that sends sentences sends no space behind; one that sends words sends one behind each.
        if is_sentence(text) or is_certain_end(self._tail):
            self._put_flush()

    def flush(self, *, has_text: bool) -> None:
        """Synthesise all that has been written."""
        self._append_rest()
        self._flushed_s, self._is_bare_flush = asyncio.get_running_loop().time(), not has_text
        self._put_flush()

    def end(self) -> None:
        """Complete the text: the context ends after its audio."""
        if not self.is_ended:
            self.is_ended = True
            self._append_rest()
            self._pieces.put_nowait(None)

    def close(self) -> None:
        """End the turn where all text has just been flushed; else, and the second time, interrupt it."""
        is_flushed = self._flushed_s is not None and (
            self._is_bare_flush or asyncio.get_running_loop().time() - self._flushed_s <= END_OF_TURN_S
        )
        if is_flushed and not self.is_ended:
            self.end()
        else:
            self.cancel()

    def cancel(self) -> None:
        """Drop the text and the audio that has not been sent."""
        self._scope.cancel()

    async def run(self) -> SpeechServerError | None:
        """Synthesise and send; returns when the engine is idle, with the error where it failed."""
        with self._scope:
            try:
                async with self._service.open(self._request, self._encoder) as stream:
                    self._stream, self.stats = stream, stream.stats
                    stream.buffer.on_abort.add(self._abort)
                    await self._send(stream)
            except SpeechServerError as error:
                return error
        return None

    def _abort(self) -> None:
        self._channel.end_slow("the unsent audio has reached its limit")

    def _append_rest(self) -> None:
        """Append what would have become a tag."""
        for piece in self._tags.flush() if self._tags else ():
            self._append(piece)

    def _put_flush(self) -> None:
        if self._last is not TextSignal.FLUSH:
            self._last = TextSignal.FLUSH
            self._pieces.put_nowait(TextSignal.FLUSH)

    async def _text(self) -> TextPieces:
        while (piece := await self._pieces.get()) is not None:
            yield piece

    async def _send(self, stream: SpeechStream) -> None:
        aligned_s = 0.0
        async for piece, passage in stream.buffer.timed():
            self._is_sending = True
            await self._channel.send(self._message(piece, passage, aligned_s))
            self._is_sending = False
            if passage is not None and not self._counts_from_start:
                aligned_s = passage.end_s

    def _message(self, piece: bytes, passage: Passage | None, aligned_s: float) -> dict[str, Any]:
        alignment = None if passage is None else milliseconds(passage, aligned_s)
        stated = {} if passage is None else {"alignment_precision": passage.precision}
        return {
            "audio": base64.b64encode(piece).decode(),
            "isFinal": None,
            "alignment": alignment,
            "normalizedAlignment": alignment,
            **stated,
            **self._fields,
        }
