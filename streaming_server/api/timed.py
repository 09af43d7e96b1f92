"""Speech with the times of its words, as JSON: one object a line during the synthesis, or one for all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streaming_server.api.responses import Connection, SpeechResponse, complete
from streaming_server.audio.encoders import AudioEncoder, PcmEncoder
from streaming_server.domain import SpeechRequest
from streaming_server.speech import captions
from streaming_server.speech.incremental import by_sentences
from streaming_server.speech.service import SpeechService
from streaming_server.speech.stream import SpeechStream
from streaming_server.speech.timeline import Passage, precision_of

Compose = Callable[[bytes, Sequence[Passage]], Mapping[str, Any]]
"""The object for a piece of audio, in base64 as its first member, and the passages that end with it."""


class TimedSpeechResponse(SpeechResponse):
    """A text that is synthesised sentence by sentence: the times of each are known when it is complete."""

    def __init__(
        self,
        service: SpeechService,
        request: SpeechRequest,
        encoder: AudioEncoder,
        headers: Mapping[str, str],
        send_timeout_s: float,
        *,
        compose: Compose,
        is_whole: bool,
    ) -> None:
        """``is_whole``: one object after the last sample, in place of one a line."""
        json_headers = {**headers, "Content-Type": "application/json"}
        super().__init__(service, by_sentences(request), encoder, json_headers, send_timeout_s, keep=False)
        self.characters = len(request.text)
        self._compose = compose
        self._is_whole = is_whole

    async def respond(self, stream: SpeechStream, connection: Connection) -> None:
        if self._is_whole:
            size = await complete(stream)
            content = _line(self._compose(b"", stream.buffer.passages))
            await connection.write_json(self.headers, content, stream, size)
            return
        async for piece, passage in stream.buffer.timed():
            if not connection.started:
                await self.announce(stream, connection)
            await connection.write(_line(self._compose(piece, [passage] if passage else [])))
        if not connection.started:
            await self.announce(stream, connection)


class SubtitleResponse(SpeechResponse):
    """The subtitles of a text, without its audio."""

    def __init__(self, service: SpeechService, request: SpeechRequest, name: str, send_timeout_s: float) -> None:
        """``name``: one of `captions.FORMATS`."""
        media_type, self._write = captions.FORMATS[name]
        headers = {
            "Content-Type": f"{media_type}; charset=utf-8",
            "Content-Disposition": f"attachment; filename=synthesized_audio.{name}",
        }
        super().__init__(service, request, PcmEncoder(), headers, send_timeout_s, keep=False)

    async def respond(self, stream: SpeechStream, connection: Connection) -> None:
        passages = [passage async for _, passage in stream.buffer.timed() if passage]
        content = self._write(passages).encode()
        precision = {"X-Alignment-Precision": precision_of(passages)}
        await connection.start(200, {**self.headers, **precision, "Content-Length": str(len(content))})
        await connection.write(content)


def _line(content: Mapping[str, Any]) -> bytes:
    """In ASCII: some clients, httpx among them, also divide lines at U+2028 and U+2029."""
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
