"""The messages that a session of ``/v1/audio/speech/stream`` sends."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streaming_server.api.channel import Channel
from streaming_server.api.openai.schemas import FORMAT_NAMES, SessionConfig
from streaming_server.api.requests import RequestBuilder
from streaming_server.audio.encoders import FORMATS, PcmEncoder, wav_header
from streaming_server.domain import Emotion, Generation, Voice
from streaming_server.errors import AudioTooLarge, ReaderTooSlow, SpeechServerError
from streaming_server.speech.stream import SpeechStats, SpeechStream
from streaming_server.speech.timeline import Passage, precision_of

_MAX_WORDS_BYTES = 192 * 1024
"""Of the words in one message: a message has at most 256 KiB."""
_WORD_BYTES, _CHARACTER_BYTES = 64, 4
"""The most that a word takes as JSON, beside its characters and for each of them."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A text to synthesise and its position in the session."""

    text: str
    utterance: int
    index: int
    config: SessionConfig
    voice: Voice


def error_message(error: SpeechServerError, **fields: Any) -> dict[str, Any]:
    return {"type": "error", "message": str(error), **fields}


class SentenceAudio:
    """The messages of one sentence."""

    def __init__(self, sentence: Sentence, requests: RequestBuilder, channel: Channel) -> None:
        self._requests = requests
        self._channel = channel
        self._sentence = sentence
        self._config = sentence.config
        self._place = {"utterance_index": sentence.utterance, "sentence_index": sentence.index}
        self._rate_hz = requests.service.engine.info.sample_rate_hz
        self._ignored: list[str] = []
        self._is_started = False
        self._sent_bytes = 0
        self.stats = SpeechStats()

    async def send(self, *, is_admitted: bool) -> SpeechServerError | None:
        """Synthesise and send; returns the error, if any."""
        config = self._config
        try:
            speech = self._requests.build(
                self._sentence.text,
                [self._sentence.voice],
                Generation(seed=config.seed, max_mel_tokens=config.max_new_tokens or Generation().max_mel_tokens),
                None,
                max_codes_field="max_new_tokens" if config.max_new_tokens else None,
                emotion=Emotion(text=config.instructions) if (config.instructions or "").strip() else None,
                speed=config.speed or 1.0,
                language=config.language or "",
            )
            self._ignored = self._requests.ignored(speech)
            name = config.response_format
            is_raw = config.stream_audio or name == "wav"
            encoder = PcmEncoder() if is_raw else FORMATS[FORMAT_NAMES.get(name, name)].create()
            async with self._requests.service.open(speech, encoder, is_admitted=is_admitted) as stream:
                self.stats = stream.stats
                await (self._stream(stream) if config.stream_audio else self._whole(stream))
        except SpeechServerError as error:
            partial = {"partial_audio": True, "action": "discard"} if self._is_started else {}
            await self._channel.send(error_message(error, **partial))
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
                **({"ignored_settings": self._ignored} if self._ignored else {}),
            }
        )

    async def _done(self, *, has_failed: bool) -> None:
        await self._channel.send(
            {"type": "audio.done", **self._place, "total_bytes": self._sent_bytes, "error": has_failed}
        )

    async def _whole(self, stream: SpeechStream) -> None:
        """
        Raises:
            AudioTooLarge: it exceeds the limits of unsent audio.
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
        passages: list[Passage] = []
        async for piece, passage in stream.buffer.timed():
            passages += [passage] if passage else []
            if not piece:
                continue
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
            precision = {"alignment_precision": precision_of(passages)}
            for number, words in enumerate(_batches(passages), chunk):
                await self._send_chunk(number, self._sent_bytes, b"", words, **precision)

    async def _send_chunk(
        self, number: int, begin: int, piece: bytes, words: Sequence[Mapping[str, Any]] | None, **fields: Any
    ) -> None:
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
                "timestamps": words,
                **fields,
            }
        )

    def _ms(self, size: int) -> int:
        """Return the duration of a number of bytes of samples."""
        return round(size / 2 / self._rate_hz * 1000)


def _batches(passages: Sequence[Passage]) -> Iterator[list[dict[str, Any]]]:
    """The words of passages in messages of at most `_MAX_WORDS_BYTES`; at least one message."""
    batch: list[dict[str, Any]] = []
    size = 0
    for word in (word for passage in passages for word in passage.words()):
        word_bytes = _WORD_BYTES + _CHARACTER_BYTES * len(word.text)
        if batch and size + word_bytes > _MAX_WORDS_BYTES:
            yield batch
            batch, size = [], 0
        batch.append({"word": word.text, "start_ms": round(word.start_s * 1000), "end_ms": round(word.end_s * 1000)})
        size += word_bytes
    yield batch
