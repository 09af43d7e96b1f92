"""``WS /v1/audio/speech/stream``: incremental text and streamed audio, compatible with vLLM-Omni's clients.

One task reads the client's messages, another synthesises the sentences, each as a separate stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.websockets import WebSocket

from streaming_server.api.channel import Channel, check_handshake, message_fields
from streaming_server.api.http import Body, validated
from streaming_server.api.openai.schemas import SessionConfig
from streaming_server.api.openai.session_audio import Sentence, SentenceAudio, error_message
from streaming_server.api.record import COMPLETE, RequestRecord
from streaming_server.api.requests import RequestBuilder
from streaming_server.domain import Voice
from streaming_server.errors import (
    ForbiddenCharacter,
    InvalidRequest,
    SessionTimeout,
    SpeechServerError,
    TextTooLong,
)
from streaming_server.segmentation import Cut, Segmenter
from streaming_server.text import forbidden_character

MAX_MESSAGE_BYTES = 128 * 1024
"""Maximum size of messages other than ``session.config``, for which only the server's limit applies."""
_MAX_REFERENCES = 4
"""Maximum number of recordings per session."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    config_s: float = 10.0
    """Timeout for the first ``session.config``."""
    idle_s: float = 30.0
    """Timeout without a message or audio."""


class _Text(Body):
    text: str


@dataclass(frozen=True, slots=True)
class _End:
    """The end of an utterance."""

    utterance: int
    sentences: int


class SpeechSession:
    """One connection."""

    def __init__(
        self,
        websocket: WebSocket,
        requests: RequestBuilder,
        find_voice: Callable[[str], Awaitable[Voice]],
        limits: SessionLimits,
    ) -> None:
        """``find_voice``: raises `VoiceUnknown`."""
        self._websocket = websocket
        self._requests = requests
        self._service = requests.service
        self._settings = requests.settings
        self._find_voice = find_voice
        self._limits = limits
        self._record = RequestRecord.of(websocket.scope)
        self._config: SessionConfig | None = None
        self._voice: Voice | None = None
        self._files = AsyncExitStack()
        self._references = 0
        self._segmenter = Segmenter()
        self._text = ""
        """Text of the current utterance, if it is not split."""
        self._utterance = 0
        self._utterance_characters = 0
        self._sentences = 0
        self._items: asyncio.Queue[Sentence | _End | None] = asyncio.Queue()
        """None follows the last item after ``session.close``."""
        self._is_closing = False
        self._waiting_characters = 0
        """Number of characters in unfinished sentences."""
        self._is_speaking = False
        self._channel = Channel(websocket, self._settings.send_timeout_s, self._record, self._is_busy)

    async def run(self) -> None:
        """Serve the connection until it ends.

        Raises:
            EngineNotReady, OriginRefused: the handshake is rejected.
        """
        check_handshake(self._websocket, self._service, self._settings)
        await self._channel.accept()
        try:
            async with self._files:
                with self._channel.scope:
                    async with anyio.create_task_group() as group:
                        group.start_soon(self._synthesise)
                        group.start_soon(self._channel.end_at_shutdown, error_message)
                        await self._read()
        finally:
            await self._channel.close()

    async def _read(self) -> None:
        while True:
            try:
                if self._config is None:
                    message = await self._channel.receive(self._limits.config_s, "no session.config")
                else:
                    message = await self._channel.receive(self._limits.idle_s)
                if message is None:
                    return
                if not self._is_closing:
                    await self._take(message)
            except SpeechServerError as error:
                if self._config is None or isinstance(error, SessionTimeout):
                    await self._fail(error)
                    return
                await self._channel.send(error_message(error))

    def _is_busy(self) -> bool:
        return self._is_speaking or not self._items.empty()

    async def _fail(self, error: SpeechServerError) -> None:
        """Report an error and end the session."""
        await self._channel.send(error_message(error))
        self._channel.end(1008, str(error), error.code)

    async def _take(self, message: Any) -> None:
        """Process a message.

        Raises:
            SpeechServerError: the message is invalid or not supported.
        """
        fields, size = await message_fields(self._websocket, message, "type")
        kind = fields.get("type") if isinstance(fields, dict) else None
        if kind != "session.config" and size > MAX_MESSAGE_BYTES:
            raise InvalidRequest(f"the message is larger than {MAX_MESSAGE_BYTES} bytes", "type")
        if self._config is None and kind not in ("session.config", "session.close"):
            raise InvalidRequest("the first message must be session.config", "type")
        match kind:
            case "session.config":
                await self._configure(validated(SessionConfig, fields, "body"))
            case "input.text":
                self._append(validated(_Text, fields, "body").text)
            case "input.done":
                self._finish()
            case "session.close":
                self._is_closing = True
                self._items.put_nowait(None)
            case _:
                known = "session.config, input.text, input.done and session.close"
                raise InvalidRequest(f"unknown type {str(kind)[:80]!r}; the types are {known}", "type")

    async def _configure(self, config: SessionConfig) -> None:
        if self._utterance_characters:
            raise InvalidRequest("session.config is not allowed within an utterance; send input.done first", "type")
        config.check()
        self._voice = await self._reference(config) or await self._find_voice(config.voice_name)
        self._config = config
        self._record.voice = self._voice.name
        self._segmenter = Segmenter(Cut.CLAUSE if config.split_granularity == "clause" else Cut.SENTENCE)

    async def _reference(self, config: SessionConfig) -> Voice | None:
        """Return the voice of the recording in a message, which is kept until the end of the session."""
        if config.ref_audio is None:
            return None
        if self._references >= _MAX_REFERENCES:
            raise InvalidRequest(f"a session may send at most {_MAX_REFERENCES} recordings", "ref_audio")
        recording = self._requests.references.voice(config.ref_audio, (config.ref_text or "").strip())
        voice = await self._files.enter_async_context(recording)
        self._references += 1
        return voice

    def _append(self, text: str) -> None:
        assert self._config is not None
        limit = self._settings.max_text_characters
        if forbidden := forbidden_character(text):
            raise ForbiddenCharacter(*forbidden)
        if self._utterance_characters + len(text) > limit:
            raise TextTooLong(self._utterance_characters + len(text), limit)
        if self._waiting_characters + len(text) > limit:
            raise InvalidRequest(f"{limit} characters are waiting to be synthesised; send further text later", "text")
        self._utterance_characters += len(text)
        self._record.characters = (self._record.characters or 0) + len(text)
        if self._config.split_granularity == "none":
            self._text += text
        else:
            self._enqueue(self._segmenter.push(text))

    def _finish(self) -> None:
        """End the utterance."""
        if self._items.qsize() > self._settings.max_text_characters:
            raise InvalidRequest("too many utterances are waiting; send input.done later", "type")
        self._enqueue([*self._segmenter.flush(), *([self._text] if self._text.strip() else [])])
        self._items.put_nowait(_End(self._utterance, self._sentences))
        self._utterance += 1
        self._text, self._utterance_characters, self._sentences = "", 0, 0

    def _enqueue(self, segments: list[str]) -> None:
        assert self._config is not None
        assert self._voice is not None
        for segment in segments:
            self._waiting_characters += len(segment)
            self._items.put_nowait(Sentence(segment, self._utterance, self._sentences, self._config, self._voice))
            self._sentences += 1

    async def _synthesise(self) -> None:
        """Synthesise the queued sentences in order."""
        is_admitted = is_refused = False  # of the utterance
        while True:
            item = await self._items.get()
            if item is None:
                self._channel.end(1000, "", COMPLETE)
                return
            self._is_speaking = True
            try:
                if isinstance(item, _End):
                    await self._channel.send(
                        {"type": "session.done", "utterance_index": item.utterance, "total_sentences": item.sentences}
                    )
                    is_admitted = is_refused = False
                elif not is_refused:
                    audio = SentenceAudio(item, self._requests, self._channel)
                    try:
                        error = await audio.send(is_admitted=is_admitted)
                    finally:
                        self._record.add(audio.stats)
                    is_admitted = is_admitted or audio.stats.wait_s is not None
                    # a full queue would reject the other sentences of the utterance too
                    is_refused = error is not None and error.retryable
            finally:
                self._is_speaking = False
                self._waiting_characters -= len(item.text) if isinstance(item, Sentence) else 0
