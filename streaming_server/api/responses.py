"""Speech as an HTTP response: headers with the first audio, bytes as they are encoded.

A stream that fails after its first byte ends without the final chunk, so that clients can detect it.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import logging
import termios
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress

import anyio
from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from streaming_server.api.http import RangeNotSatisfiable
from streaming_server.api.record import COMPLETE, DISCONNECTED, RequestRecord
from streaming_server.audio.encoders import AudioEncoder, PcmEncoder, wav_header
from streaming_server.domain import SpeechRequest
from streaming_server.errors import AudioTooLarge, ReaderTooSlow, SpeechServerError, StreamNotFound
from streaming_server.speech.service import SpeechService
from streaming_server.speech.stream import SpeechStream

log = logging.getLogger(__name__)
_POLL_S = 0.02
"""Interval at which the system is asked whether a client has received the last bytes."""


class StreamResponse(ABC):
    """An ASGI response that sends one stream.

    An error before the first byte is raised and becomes a status. A later error closes the connection without the
    final chunk. A disconnect of the client leaves the stream.
    """

    def __init__(
        self,
        service: SpeechService,
        headers: Mapping[str, str],
        send_timeout_s: float,
        resources: AsyncExitStack | None = None,
    ) -> None:
        """
        Args:
            service: synthesises.
            headers: of the response.
            send_timeout_s: the connection is aborted if the client reads nothing for this long.
            resources: closed after the response, such as the file of a recording that came with the request.
        """
        self.service = service
        self.headers = headers
        self._resources = resources or AsyncExitStack()
        self._send_timeout_s = send_timeout_s

    @abstractmethod
    def open(self, scope: Scope) -> AbstractAsyncContextManager[SpeechStream]:
        """Open the stream to send."""

    @abstractmethod
    async def respond(self, stream: SpeechStream, connection: Connection) -> str | None:
        """Start the response, send its body without the final chunk and return the outcome, if not `COMPLETE`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord.of(scope)
        connection = Connection(scope, send, self._send_timeout_s)
        async with self._resources, _until_disconnect(receive) as gone, self.open(scope) as stream:
            record.outcome = DISCONNECTED

            def abort() -> None:
                if connection.started:  # otherwise reading raises the error, which becomes a status
                    record.outcome = ReaderTooSlow.code
                    connection.abort()
                    gone.cancel()

            stream.buffer.on_abort.add(abort)
            try:
                outcome = await self.respond(stream, connection)
                await connection.write(b"", last=True)
                record.outcome = outcome or COMPLETE
            except SpeechServerError as error:
                record.outcome = error.code
                if not connection.started:
                    raise
                log.warning("stream aborted: %s", error)
                await connection.cut(gone, at_once=isinstance(error, ReaderTooSlow))
            finally:
                stream.buffer.on_abort.discard(abort)
                _summarise(stream, record)


class SpeechResponse(StreamResponse):
    """A streamed synthesis. Its bytes are kept for a while, so that `ResumedResponse` can send them again."""

    def __init__(
        self,
        service: SpeechService,
        request: SpeechRequest,
        encoder: AudioEncoder,
        headers: Mapping[str, str],
        send_timeout_s: float,
        *,
        keep: bool = True,
        resources: AsyncExitStack | None = None,
    ) -> None:
        super().__init__(service, {"Content-Type": encoder.media_type, **headers}, send_timeout_s, resources)
        self.request = request
        self.characters = len(request.text)
        """Number of characters of the text, for the log and the usage."""
        self._encoder = encoder
        self._keep = keep

    def open(self, scope: Scope) -> AbstractAsyncContextManager[SpeechStream]:
        record = RequestRecord.of(scope)
        record.voice, record.characters = self.request.voice.name, self.characters
        resumable = Headers(scope=scope).get("x-resumable", "").lower() in {"true", "1"}
        return self.service.open(self.request, self._encoder, keep=self._keep, resumable=resumable)

    async def respond(self, stream: SpeechStream, connection: Connection) -> str | None:
        piece = await stream.buffer.read(0)
        await self.announce(stream, connection)
        await connection.write_stream(stream, 0, piece)
        return None

    async def announce(self, stream: SpeechStream, connection: Connection, **headers: str) -> None:
        """Send the headers, including the id for resuming the stream."""
        names = {"X-Queue-Position": str(stream.stats.position)}
        if self._keep:
            names["X-Stream-Id"] = stream.id
            names["X-Resumable"] = "true" if stream.is_resumable else "false"
            stream.is_announced = True
        await connection.start(200, {**self.headers, **names, **headers})


class WholeSpeechResponse(SpeechResponse):
    """A complete WAV file with its length, sent after the last sample."""

    def __init__(
        self, service: SpeechService, request: SpeechRequest, headers: Mapping[str, str], send_timeout_s: float
    ) -> None:
        wav_headers = {**headers, "Content-Type": "audio/wav"}
        super().__init__(service, request, PcmEncoder(), wav_headers, send_timeout_s, keep=False)

    async def respond(self, stream: SpeechStream, connection: Connection) -> None:
        size = await complete(stream)
        header = wav_header(self.service.engine.info.sample_rate_hz, size // 2)
        await connection.start(200, {**self.headers, "Content-Length": str(len(header) + size)})
        await connection.write(header)
        await connection.write_stream(stream, 0)


class ResumedResponse(StreamResponse):
    """A kept stream, sent from a given byte."""

    def __init__(
        self,
        service: SpeechService,
        stream_id: str,
        position: int,
        send_timeout_s: float,
        *,
        by_range: bool,
        last: int | None = None,
    ) -> None:
        """
        Args:
            service: the service that holds the stream.
            stream_id: id of the stream.
            position: first byte to send.
            send_timeout_s: as for `StreamResponse`.
            by_range: the position comes from a ``Range`` header; the status of a finished stream is then 206.
            last: last byte to send of a finished stream; None for all.
        """
        super().__init__(service, {}, send_timeout_s)
        self._stream_id = stream_id
        self._position = position
        self._by_range = by_range
        self._last = last

    def open(self, scope: Scope) -> AbstractAsyncContextManager[SpeechStream]:
        return self.service.resume(self._stream_id)

    async def respond(self, stream: SpeechStream, connection: Connection) -> None:
        buffer, position = stream.buffer, self._position
        if position < buffer.first:
            raise StreamNotFound
        is_complete = buffer.ended and buffer.error is None
        piece = b""
        if buffer.ended or position > buffer.size:
            # For a running stream, only its end or a later byte shows whether the position exists.
            piece = await buffer.read(position)
        if position > buffer.size or (self._by_range and is_complete and position == buffer.size):
            raise RangeNotSatisfiable(buffer.size)
        headers = {"Content-Type": stream.media_type, "X-Stream-Id": stream.id, "X-Stream-Offset": str(position)}
        end = buffer.size if is_complete else None
        if is_complete and self._by_range:
            end = min(buffer.size, buffer.size if self._last is None else self._last + 1)
            span = {"Content-Range": f"bytes {position}-{end - 1}/{buffer.size}", "Accept-Ranges": "bytes"}
            await connection.start(206, {**headers, **span, "Content-Length": str(end - position)})
        elif is_complete:
            await connection.start(200, {**headers, "Content-Length": str(buffer.size - position)})
        else:
            await connection.start(200, headers)
        await connection.write_stream(stream, position, piece, end)


class AudioFileResponse(FileResponse):
    """A file of audio. A ``Range`` header with another unit or syntax is ignored (RFC 9110, section 14.2).

    So is one of a HEAD request, and one with several ranges of which any begins past the end.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Raises:
            RangeNotSatisfiable: the only range begins past the end of the file.
        """
        ignored = {400}
        if scope["method"] == "HEAD":
            ignored |= {206, 416}
        elif "," in Headers(scope=scope).get("range", ""):
            ignored |= {416}

        async def checked(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in ignored:
                raise _RangeIgnored
            if message["type"] == "http.response.start" and message["status"] == 416:
                raise RangeNotSatisfiable(int(self.headers["content-length"]))
            await send(message)

        try:
            await super().__call__(scope, receive, checked)
        except _RangeIgnored:
            headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
            await super().__call__({**scope, "headers": headers}, receive, send)


class _RangeIgnored(Exception):
    pass


class Connection:
    """The sending side of one request."""

    def __init__(self, scope: Scope, send: Send, timeout_s: float) -> None:
        self._send = send
        self._timeout_s = timeout_s
        self._transport: asyncio.WriteTransport | None = scope["state"].get("transport")
        self._is_reset = scope["http_version"] != "1.1"
        """Whether closing the connection may reset it, which discards what the client has not received."""
        self.started = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the status line and the headers."""
        self.started = True
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write_stream(
        self, stream: SpeechStream, position: int, piece: bytes = b"", end: int | None = None
    ) -> None:
        """Send a stream from a position to ``end`` or its own end; ``piece`` has been read at the position."""
        piece = piece or await stream.buffer.read(position)
        while piece and (end is None or position < end):
            await self.write(piece if end is None else piece[: end - position])
            position += len(piece)
            piece = await stream.buffer.read(position)

    async def write_json(
        self, headers: Mapping[str, str], content: bytes, stream: SpeechStream, size: int, head: bytes = b""
    ) -> None:
        """Send a JSON object with the audio of a complete stream in base64, which is encoded as the client reads.

        Args:
            headers: of the response.
            content: the object; its first empty string stands for the audio.
            stream: the stream, whose bytes nothing has read.
            size: the number of its bytes.
            head: comes before the bytes of the stream, such as the header of a WAV file.
        """
        before, _, after = content.partition(b'""')
        length = len(before) + len(after) + 2 + 4 * -(-(len(head) + size) // 3)
        await self.start(200, {**headers, "Content-Length": str(length)})
        await self.write(before + b'"')
        position, rest = 0, head
        while piece := await stream.buffer.read(position):
            position += len(piece)
            rest += piece
            whole = len(rest) - len(rest) % 3
            await self.write(base64.b64encode(rest[:whole]))
            rest = rest[whole:]
            await asyncio.sleep(0)  # once the client has left, nothing above suspends
        await self.write(base64.b64encode(rest) + b'"' + after)

    async def write(self, body: bytes, *, last: bool = False) -> None:
        """Send bytes.

        Raises:
            ReaderTooSlow: the client read nothing within the timeout.
        """
        try:
            with anyio.fail_after(self._timeout_s):
                await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        except TimeoutError:
            raise ReaderTooSlow(f"the reader read nothing for {self._timeout_s:g} s") from None

    def abort(self) -> None:
        """Close the connection immediately and discard its unsent bytes."""
        if self._transport is not None:
            self._transport.abort()

    async def cut(self, gone: asyncio.Task[None], *, at_once: bool) -> None:
        """Close the connection without the final chunk, after its unsent bytes unless ``at_once``."""
        if self._transport is None:
            return  # a server without access to the transport closes the connection of an incomplete response
        if at_once:
            self._transport.abort()
        else:
            if self._is_reset:
                await _all_received(self._transport, self._timeout_s)
            self._transport.close()
        await asyncio.wait([gone], timeout=self._timeout_s)
        self._transport.abort()


async def _all_received(transport: asyncio.WriteTransport, timeout_s: float) -> None:
    """Wait until the client has acknowledged all bytes, as far as the system tells."""
    connection, unacknowledged = transport.get_extra_info("socket"), bytearray(4)
    with anyio.move_on_after(timeout_s), suppress(OSError):
        while not transport.is_closing():
            fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, unacknowledged)
            if not any(unacknowledged) and not transport.get_write_buffer_size():
                return
            await asyncio.sleep(_POLL_S)


async def complete(stream: SpeechStream) -> int:
    """Wait for the end of a stream that is sent as a whole, and return the number of its bytes.

    Raises:
        AudioTooLarge: it exceeds the limits of unsent audio.
    """
    try:
        return await stream.buffer.complete()
    except ReaderTooSlow:
        raise AudioTooLarge from None


@asynccontextmanager
async def _until_disconnect(receive: Receive) -> AsyncIterator[asyncio.Task[None]]:
    """Cancel the body when the client disconnects; yields the task that ends on a disconnect.

    Raises:
        HTTPException: the server rejected the rest of the request.
    """
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
    if gone.done() and not gone.cancelled():
        gone.result()


def _summarise(stream: SpeechStream, record: RequestRecord) -> None:
    """Add a stream's statistics to its request's record."""
    stats = stream.stats
    record.wait_s = stats.wait_s and round(stats.wait_s, 4)
    record.first_audio_s = stats.first_audio_s and round(stats.first_audio_s, 4)
    record.audio_s = round(stats.audio_s, 3)
    record.real_time_factor = round(stats.synthesis_s / stats.audio_s, 5) if stats.audio_s else None
    record.underruns = stats.underruns
