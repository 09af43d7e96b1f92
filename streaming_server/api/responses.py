"""Speech as an HTTP response: headers with the first audio, bytes as they are made, an end that can be told from a cut.

Knows streams and connections; not routes, and not what an error looks like in a dialect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.types import Message, Receive, Scope, Send

from streaming_server.audio.encoders import AudioEncoder, PcmEncoder, wav_header
from streaming_server.core.speech import SpeechService, SpeechStream
from streaming_server.domain import SpeechRequest
from streaming_server.errors import ReaderTooSlow, SpeechServerError

log = logging.getLogger(__name__)


class SpeechResponse:
    """An ASGI response that streams one synthesis.

    An error before the first audio is raised, to be answered with a status. One after it ends the connection without
    the final chunk. A client that goes away ends the synthesis.
    """

    def __init__(
        self,
        service: SpeechService,
        request: SpeechRequest,
        encoder: AudioEncoder,
        headers: Mapping[str, str],
        send_timeout_s: float,
    ) -> None:
        """``send_timeout_s``: a reader that takes nothing for this long is cut off."""
        self._service = service
        self._request = request
        self._encoder = encoder
        self._headers = {"Content-Type": encoder.media_type, **headers}
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        entry = scope["state"].setdefault("log", {})
        entry.update(voice=self._request.voice.name, characters=len(self._request.text), outcome="disconnected")
        connection = _Connection(scope, send, self._send_timeout_s)
        async with _until_disconnect(receive) as gone, self._service.open(self._request, self._encoder) as stream:

            def give_up() -> None:
                entry["outcome"] = ReaderTooSlow.code
                connection.abort()
                gone.cancel()

            stream.unsent.on_give_up = give_up
            try:
                await self._respond(stream, connection)
                entry["outcome"] = "complete"
            except SpeechServerError as error:
                entry["outcome"] = error.code
                if not connection.started:
                    raise
                log.warning("the stream was cut: %s", error)
                await connection.cut(gone, at_once=isinstance(error, ReaderTooSlow))
            finally:
                entry.update(_summary(stream))

    async def _respond(self, stream: SpeechStream, connection: _Connection) -> None:
        piece = await stream.read()
        await connection.start(200, self._headers)
        while piece:
            await connection.write(piece)
            piece = await stream.read()
        await connection.write(b"", last=True)


class WholeSpeechResponse(SpeechResponse):
    """A whole WAV file, with its length, once the last sample is there."""

    def __init__(
        self, service: SpeechService, request: SpeechRequest, headers: Mapping[str, str], send_timeout_s: float
    ) -> None:
        super().__init__(service, request, PcmEncoder(), {**headers, "Content-Type": "audio/wav"}, send_timeout_s)

    async def _respond(self, stream: SpeechStream, connection: _Connection) -> None:
        size = await stream.unsent.complete()
        header = wav_header(self._service.engine.info.sample_rate_hz, size // 2)
        await connection.start(200, {**self._headers, "Content-Length": str(len(header) + size)})
        piece = header
        while piece:
            await connection.write(piece)
            piece = await stream.read()
        await connection.write(b"", last=True)


class _Connection:
    """The sending side of one request."""

    def __init__(self, scope: Scope, send: Send, timeout_s: float) -> None:
        self._send = send
        self._timeout_s = timeout_s
        self._transport: asyncio.WriteTransport | None = scope["state"].get("transport")
        self.started = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, body: bytes, *, last: bool = False) -> None:
        """Send bytes.

        Raises:
            ReaderTooSlow: the reader took nothing for too long.
        """
        try:
            with anyio.fail_after(self._timeout_s):
                await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        except TimeoutError:
            raise ReaderTooSlow(f"the reader took nothing for {self._timeout_s:g} s") from None

    def abort(self) -> None:
        """Drop the connection with what it has not sent."""
        if self._transport is not None:
            self._transport.abort()

    async def cut(self, gone: asyncio.Task[None], *, at_once: bool) -> None:
        """End the connection without the final chunk; what was sent may still arrive, unless ``at_once``."""
        if self._transport is None:
            return  # a server that gives no hold of the connection closes it when the response stays incomplete
        if at_once:
            self._transport.abort()
        else:
            self._transport.close()
        with anyio.move_on_after(self._timeout_s):
            await asyncio.shield(gone)
        self._transport.abort()


@asynccontextmanager
async def _until_disconnect(receive: Receive) -> AsyncIterator[asyncio.Task[None]]:
    """Run the body until the client goes away; yields the task that ends when it does."""
    with anyio.CancelScope() as body:

        async def watch() -> None:
            message: Message = {"type": ""}
            while message["type"] != "http.disconnect":
                message = await receive()

        gone = asyncio.create_task(watch())
        gone.add_done_callback(lambda _: body.cancel())
        try:
            yield gone
        finally:
            gone.cancel()


def _summary(stream: SpeechStream) -> dict[str, Any]:
    """What the log says of a stream."""
    stats = stream.stats
    return {
        "wait_s": stats.wait_s and round(stats.wait_s, 4),
        "first_audio_s": stats.first_audio_s and round(stats.first_audio_s, 4),
        "audio_s": round(stats.audio_s, 3),
        "real_time_factor": round(stats.synthesis_s / stats.audio_s, 5) if stats.audio_s else None,
    }
