"""A client connection: reads events while one job at a time is synthesised and sent."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import anyio
import anyio.lowlevel
from wyoming.event import Event

from streaming_server.api.http import Body, validated
from streaming_server.api.record import COMPLETE, DISCONNECTED, RequestRecord
from streaming_server.api.requests import Name, RequestBuilder
from streaming_server.audio.encoders import PcmEncoder
from streaming_server.domain import Generation, Span, SpeechRequest, TextPieces, Voice
from streaming_server.errors import (
    BlankText,
    EngineFailed,
    InvalidRequest,
    ReaderTooSlow,
    SessionTimeout,
    SpeechServerError,
    TextTooLong,
)
from streaming_server.logs import request_id
from streaming_server.ops.metrics import Metrics
from streaming_server.wyoming.events import MalformedEvent, read_event, write_event
from streaming_server.wyoming.info import info

log = logging.getLogger(__name__)

_CHUNK_BYTES = 32 * 1024
_MAX_WAITING = 8
"""Maximum number of waiting jobs per connection."""
_CLOSE_S = 1.0


class VoiceData(Body):
    name: Name | None = None
    speaker: Name | None = None
    """Accepted and ignored: no voice has several speakers."""
    language: Name | None = None


class _Start(Body):
    voice: VoiceData | None = None
    text_format: Literal["text"] | None = None


class _Synthesize(Body):
    text: str
    voice: VoiceData | None = None
    text_format: Literal["text", "ssml"] | None = None


class _Chunk(Body):
    text: str


@dataclass(eq=False)
class _Job:
    """A text, complete or in pieces; ``error`` if it cannot be synthesised."""

    voice: VoiceData | None = None
    text: str = ""
    is_ssml: bool = False
    pieces: asyncio.Queue[str | SpeechServerError | None] | None = None
    """Pieces of a streamed text; None ends it, an error fails it."""
    error: SpeechServerError | None = None
    characters: int = field(default=0)
    """Number of characters of a streamed text so far."""

    @property
    def is_streamed(self) -> bool:
        return self.pieces is not None


class Connection:
    """Reads, synthesises and sends until the client disconnects."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        requests: RequestBuilder,
        metrics: Metrics,
        idle_s: float,
        send_timeout_s: float,
    ) -> None:
        """``idle_s`` and ``send_timeout_s``: as in `WyomingOptions`."""
        self._reader = reader
        self._writer = writer
        self._requests = requests
        self._metrics = metrics
        self._idle_s = idle_s
        self._send_timeout_s = send_timeout_s
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._current: _Job | None = None
        self._stream: _Job | None = None
        """The text that is arriving in pieces, if any."""
        self._writing = asyncio.Lock()
        self._scope = anyio.CancelScope()
        self._error: SpeechServerError | None = None
        self._deadline: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Serve until the client disconnects, is idle for too long, or `end` is called."""
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._work)
                    await self._read()
                    group.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True) as closing:
                if self._error is not None and not isinstance(self._error, ReaderTooSlow):
                    self._scope = anyio.CancelScope()
                    await self._send_error(self._error)
                    if self._current is not None:
                        await self._send_end(self._current, is_started=True)
                self._writer.close()
                with suppress(ConnectionError):
                    await self._writer.wait_closed()
            if closing.cancelled_caught:
                self._writer.transport.abort()

    def end(self, error: SpeechServerError) -> None:
        """Close the connection after sending the reason."""
        self._error = self._error or error
        self._scope.cancel()

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(self._idle_s) as self._deadline:
                while True:
                    try:
                        event = await read_event(self._reader)
                        if event is None:
                            return
                        self._touch()
                        await self._take(event)
                    except MalformedEvent:
                        raise
                    except SpeechServerError as error:
                        self._enqueue(_Job(error=error))
        except TimeoutError:
            self.end(SessionTimeout("no event", self._idle_s))
        except MalformedEvent as error:
            log.info("wyoming connection closed: %s", error)
            self.end(error)
        except ConnectionError:
            return

    def _touch(self) -> None:
        """Restart the idle timer."""
        if self._deadline is not None and not self._deadline.expired():
            with suppress(RuntimeError):  # it has just ended
                self._deadline.reschedule(asyncio.get_running_loop().time() + self._idle_s)

    async def _take(self, event: Event) -> None:
        """
        Raises:
            InvalidRequest: the event's data is invalid.
        """
        stream = self._stream
        match event.type:
            case "describe":
                service = self._requests.service
                await self._send(await info(service.engine.info, self._requests.voices))
            case "ping":
                await self._send(Event("pong", {"text": event.data.get("text")}))
            case "synthesize" if stream is None:
                given = validated(_Synthesize, event.data, "body")
                self._enqueue(_Job(given.voice, given.text, is_ssml=given.text_format == "ssml"))
            case "synthesize-start":
                if stream is not None and stream.pieces is not None:
                    stream.pieces.put_nowait(None)
                self._stream = _Job(pieces=asyncio.Queue())
                try:
                    self._stream.voice = validated(_Start, event.data, "body").voice
                except InvalidRequest as error:
                    self._stream.error = error  # its chunks and its stop belong to it all the same
                self._enqueue(self._stream)
            case "synthesize-chunk" | "synthesize-stop" if stream is None or stream.pieces is None:
                missing = InvalidRequest(f"{event.type} without synthesize-start", "type")
                self._enqueue(_Job(error=missing, pieces=asyncio.Queue()))
            case "synthesize-chunk":
                assert stream is not None
                assert stream.pieces is not None
                try:
                    text = validated(_Chunk, event.data, "body").text
                except InvalidRequest as error:
                    stream.pieces.put_nowait(error)
                else:
                    self._append(stream, text)
            case "synthesize-stop":
                assert stream is not None
                assert stream.pieces is not None
                stream.pieces.put_nowait(None)
                self._stream = None

    def _append(self, stream: _Job, text: str) -> None:
        assert stream.pieces is not None
        limit = self._requests.settings.max_text_characters
        if stream.characters > limit:
            return  # already failed
        stream.characters += len(text)
        too_long = stream.characters > limit
        stream.pieces.put_nowait(TextTooLong(stream.characters, limit) if too_long else text)

    def _enqueue(self, job: _Job) -> None:
        if self._jobs.qsize() >= _MAX_WAITING:
            self.end(InvalidRequest(f"{_MAX_WAITING} texts are waiting on this connection", "text"))
        self._jobs.put_nowait(job)

    async def _work(self) -> None:
        while True:
            job = self._current = await self._jobs.get()
            await self._perform(job)
            self._current = None

    async def _perform(self, job: _Job) -> None:
        """Synthesise and send one job, its errors, its end and its record."""
        record = RequestRecord("WYOMING", "synthesize-start" if job.is_streamed else "synthesize")
        record.template, record.outcome = record.route, DISCONNECTED
        identity = request_id.set(uuid.uuid4().hex)
        began_s, is_started = time.monotonic(), False
        try:
            speech = await self._request(job)
            record.voice = speech.voice.name
            is_started = await self._speak(speech, record)
            record.outcome = COMPLETE
        except SpeechServerError as error:
            record.outcome, is_started = error.code, record.sent_bytes > 0
            await self._send_error(error)
        except Exception:
            log.exception("unexpected error")
            record.outcome, is_started = SpeechServerError.code, record.sent_bytes > 0
            await self._send_error(EngineFailed("an unexpected error; the server's log has the details"))
        finally:
            if self._error is not None:
                record.outcome = self._error.code
            record.duration_s = round(time.monotonic() - began_s, 4)
            log.info("request", extra={"fields": record.logged()})
            left = record.outcome == DISCONNECTED
            self._metrics.request(record.method, record.template, None, record.sent_bytes, left=left)
            request_id.reset(identity)
        await self._send_end(job, is_started=is_started)

    async def _request(self, job: _Job) -> SpeechRequest:
        """
        Raises:
            InvalidRequest: the text cannot be synthesised, or the voice does not exist.
        """
        if job.error is not None:
            raise job.error
        text: str | TextPieces | Sequence[Span] = job.text if job.pieces is None else _pieces(job.pieces)
        if job.is_ssml:
            text = await self._requests.ssml(job.text, self._requests.voices.require)
        language = (job.voice.language or "") if job.voice else ""
        speech = self._requests.build(text, [await self._voice(job.voice)], Generation(), None, language=language)
        if ignored := self._requests.ignored(speech):
            log.info("settings ignored: %s", ", ".join(ignored))
        return speech

    async def _voice(self, asked: VoiceData | None) -> Voice:
        """Find a voice by name, otherwise the first one of a language, otherwise the default one.

        Raises:
            VoiceUnknown: the voice does not exist.
        """
        voices = self._requests.voices
        if asked is not None and asked.name:
            return await voices.require(asked.name)
        tag = (asked.language or "").lower().replace("_", "-") if asked else ""
        for wanted in filter(None, (tag, tag.partition("-")[0])):
            for voice in voices.all():
                if any(f"{known.lower()}-".startswith(f"{wanted}-") for known in voice.languages):
                    return voice
        return voices.default

    async def _speak(self, speech: SpeechRequest, record: RequestRecord) -> bool:
        """
        Raises:
            SpeechServerError: as `SpeechService.open` and reading.
        """
        service = self._requests.service
        sound = {"rate": service.engine.info.sample_rate_hz, "width": 2, "channels": 1}
        async with service.open(speech, PcmEncoder()) as stream:

            def abort() -> None:
                self.end(ReaderTooSlow("the unsent audio has reached its limit"))

            stream.buffer.on_abort.add(abort)
            try:
                while piece := await stream.buffer.read(record.sent_bytes):
                    for start in range(0, len(piece), _CHUNK_BYTES):
                        at = {**sound, "timestamp": record.sent_bytes // 2 * 1000 // sound["rate"]}
                        if not record.sent_bytes:
                            await self._send(Event("audio-start", at))
                        chunk = piece[start : start + _CHUNK_BYTES]
                        await self._send(Event("audio-chunk", at, chunk))
                        record.sent_bytes += len(chunk)
                        self._touch()
            finally:
                stream.buffer.on_abort.discard(abort)
                record.characters = stream.stats.characters
                record.add(stream.stats)
        if not record.sent_bytes:
            raise BlankText
        return True

    async def _send_error(self, error: SpeechServerError) -> None:
        await self._send(Event("error", {"text": str(error), "code": error.code}))

    async def _send_end(self, job: _Job, *, is_started: bool) -> None:
        """Send the final events of a text, also after an error."""
        if is_started or not job.is_streamed:
            await self._send(Event("audio-stop", {"timestamp": None}))
        if job.is_streamed:
            await self._send(Event("synthesize-stopped"))

    async def _send(self, event: Event) -> None:
        """Send an event; ends the connection if the client has disconnected or reads nothing for too long."""
        try:
            async with self._writing:
                with anyio.fail_after(self._send_timeout_s):
                    await write_event(event, self._writer)
        except TimeoutError:
            self.end(ReaderTooSlow(f"the reader took no byte for {self._send_timeout_s:g} s"))
        except ConnectionError:
            self._scope.cancel()
        await anyio.lowlevel.checkpoint()


async def _pieces(queue: asyncio.Queue[str | SpeechServerError | None]) -> AsyncGenerator[str, None]:
    while (piece := await queue.get()) is not None:
        if isinstance(piece, SpeechServerError):
            raise piece
        yield piece
