"""What a session of ``/v1/audio/speech/stream`` sends: the messages of each sentence, and the close."""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
from starlette.websockets import WebSocket, WebSocketDisconnect

from streaming_server.api.openai.schemas import FORMAT_NAMES, SessionConfig
from streaming_server.api.record import RequestRecord
from streaming_server.api.requests import RequestBuilder
from streaming_server.audio.encoders import FORMATS, PcmEncoder, wav_header
from streaming_server.domain import Emotion, Generation, Voice
from streaming_server.errors import AudioTooLarge, ReaderTooSlow, SpeechServerError
from streaming_server.speech.stream import SpeechStats, SpeechStream
from streaming_server.text import word_spans

_CLOSE_S = 1.0
"""A reader that takes no close frame within this time is aborted."""
_MAX_REASON_BYTES = 123
"""Of a close frame, by RFC 6455."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A text to synthesise, with its place in the session."""

    text: str
    utterance: int
    index: int
    config: SessionConfig
    voice: Voice


class Channel:
    """The sending side of a session, and its end."""

    def __init__(self, websocket: WebSocket, timeout_s: float, record: RequestRecord) -> None:
        """``timeout_s``: a reader that takes no message for this long ends the session."""
        self._websocket = websocket
        self._timeout_s = timeout_s
        self._record = record
        self._code, self._reason = 1000, ""
        self.scope = anyio.CancelScope()
        """Of all tasks of the session."""

    async def send(self, message: dict[str, Any] | bytes) -> None:
        """Send a message; where the client has gone, or takes nothing for too long, the session is cancelled."""
        try:
            with anyio.fail_after(self._timeout_s):
                if isinstance(message, bytes):
                    await self._websocket.send_bytes(message)
                else:
                    await self._websocket.send_json(message)
        except TimeoutError:
            self.end_slow(f"the reader took no byte for {self._timeout_s:g} s")
        except (WebSocketDisconnect, RuntimeError):  # the latter where uvicorn has closed for a malformed frame
            self.scope.cancel()
        await anyio.lowlevel.checkpoint()  # a send that does not wait would keep the loop from everything else

    async def send_error(self, error: SpeechServerError, **fields: Any) -> None:
        """As `send`."""
        await self.send({"type": "error", "message": str(error), **fields})

    def end(self, code: int, reason: str, outcome: str) -> None:
        """End the session; `close` sends the code and the reason."""
        self._code, self._reason, self._record.outcome = code, reason, outcome
        self.scope.cancel()

    def end_slow(self, reason: str) -> None:
        """End the session of a reader that is too slow."""
        self.end(1008, reason, ReaderTooSlow.code)

    async def close(self) -> None:
        """Close the connection; abort it where the client does not read."""
        reason = self._reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        with anyio.move_on_after(_CLOSE_S, shield=True) as waiting, suppress(RuntimeError, WebSocketDisconnect):
            await self._websocket.close(self._code, reason)
        transport = self._websocket.scope["state"].get("transport")
        if waiting.cancelled_caught and transport is not None:
            transport.abort()


class SentenceAudio:
    """The messages of one sentence."""

    def __init__(self, sentence: Sentence, requests: RequestBuilder, channel: Channel) -> None:
        self._requests = requests
        self._channel = channel
        self._sentence = sentence
        self._config = sentence.config
        self._place = {"utterance_index": sentence.utterance, "sentence_index": sentence.index}
        self._rate_hz = requests.service.engine.info.sample_rate_hz
        self._is_started = False
        self._sent_bytes = 0
        self.stats = SpeechStats()

    async def send(self, *, is_admitted: bool) -> SpeechServerError | None:
        """Synthesise and send; the error, where it failed."""
        config = self._config
        try:
            speech = self._requests.build(
                self._sentence.text,
                [self._sentence.voice],
                Generation(seed=config.seed, max_mel_tokens=config.max_new_tokens or Generation().max_mel_tokens),
                None,
                max_codes_field="max_new_tokens" if config.max_new_tokens else None,
                emotion=Emotion(text=config.instructions) if (config.instructions or "").strip() else None,
                speed=config.speed,
            )
            name = config.response_format
            is_raw = config.stream_audio or name == "wav"
            encoder = PcmEncoder() if is_raw else FORMATS[FORMAT_NAMES.get(name, name)].create()
            async with self._requests.service.open(speech, encoder, is_admitted=is_admitted) as stream:
                self.stats = stream.stats
                await (self._stream(stream) if config.stream_audio else self._whole(stream))
        except SpeechServerError as error:
            partial = {"partial_audio": True, "action": "discard"} if self._is_started else {}
            await self._channel.send_error(error, **partial)
            if self._is_started:
                await self._done(has_failed=True)
            return error
        await self._done(has_failed=False)
        return None

    async def _start(self) -> None:
        self._is_started = True
        raw = {"sample_rate": self._rate_hz, "channels": 1} if self._config.stream_audio else {}
        await self._channel.send(
            {
                "type": "audio.start",
                **self._place,
                "sentence_text": self._sentence.text,
                "format": self._config.response_format,
                **raw,
            }
        )

    async def _done(self, *, has_failed: bool) -> None:
        await self._channel.send(
            {"type": "audio.done", **self._place, "total_bytes": self._sent_bytes, "error": has_failed}
        )

    async def _whole(self, stream: SpeechStream) -> None:
        """
        Raises:
            AudioTooLarge: it passes the limits of unsent audio.
        """
        try:
            size = await stream.buffer.complete()
            audio = bytearray(wav_header(self._rate_hz, size // 2) if self._config.response_format == "wav" else b"")
            header_bytes = len(audio)
            while piece := await stream.buffer.read(len(audio) - header_bytes):
                audio += piece
        except ReaderTooSlow:
            raise AudioTooLarge from None
        await self._start()
        self._sent_bytes = len(audio)
        await self._channel.send(bytes(audio))

    async def _stream(self, stream: SpeechStream) -> None:
        def abort() -> None:
            self._channel.end_slow("the unsent audio has reached its limit")

        stream.buffer.on_abort.add(abort)
        chunk = 0
        while piece := await stream.buffer.read(self._sent_bytes):
            if not self._is_started:
                await self._start()
            begin, self._sent_bytes = self._sent_bytes, self._sent_bytes + len(piece)
            if self._config.word_timestamps:
                await self._send_chunk(chunk, begin, piece, None)
                chunk += 1
            else:
                await self._channel.send(piece)
        if not self._is_started:
            await self._start()
        if self._config.word_timestamps:
            await self._send_chunk(chunk, self._sent_bytes, b"", self._timestamps())

    async def _send_chunk(self, number: int, begin: int, piece: bytes, timestamps: list[dict[str, Any]] | None) -> None:
        precision: dict[str, Any] = {} if timestamps is None else {"alignment_precision": "segment"}
        await self._channel.send(
            {
                "type": "audio.chunk",
                **self._place,
                "chunk_id": number,
                "chunk_start_ms": self._ms(begin),
                "chunk_end_ms": self._ms(begin + len(piece)),
                "sample_rate": self._rate_hz,
                "channels": 1,
                "audio_b64": base64.b64encode(piece).decode(),
                "timestamps": timestamps,
                **precision,
            }
        )

    def _timestamps(self) -> list[dict[str, Any]]:
        """Each word's share of the sentence, whose length is exact."""
        text, whole_ms = self._sentence.text, self._ms(self._sent_bytes)
        return [
            {
                "word": text[begin:end],
                "start_ms": round(whole_ms * begin / len(text)),
                "end_ms": round(whole_ms * end / len(text)),
            }
            for begin, end in word_spans(text)
        ]

    def _ms(self, size: int) -> int:
        """How long so many bytes of samples last."""
        return round(size / 2 / self._rate_hz * 1000)
