"""The WebSocket protocols ``stream-input`` and ``multi-stream-input``: text in while audio goes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import anyio
from pydantic import Field
from starlette.websockets import WebSocket

from streaming_server.api.channel import RESTART, Channel, check_handshake, message_fields
from streaming_server.api.elevenlabs.context import Context
from streaming_server.api.elevenlabs.errors import POLICY_VIOLATION, TooManyContexts, error_message, word_of
from streaming_server.api.elevenlabs.formats import encoder_of
from streaming_server.api.elevenlabs.schemas import SessionQuery
from streaming_server.api.elevenlabs.settings import VoiceSettings, delivery
from streaming_server.api.http import Body, MalformedBody, validated, validated_text
from streaming_server.api.operations import ignored_header
from streaming_server.api.record import COMPLETE, RequestRecord
from streaming_server.api.requests import RequestBuilder
from streaming_server.domain import Capability, Voice, language_tag
from streaming_server.errors import InvalidRequest, ShuttingDown, SpeechServerError

MAX_CONTEXTS = 5
MAX_MESSAGE_BYTES = 128 * 1024
_MAX_ID_CHARACTERS = 256
_MAX_WAIT_S = 10.0
"""For the slot: clients give a context so long until its first audio."""


class _Message(Body):
    text: str | None = None
    context_id: Annotated[str, Field(max_length=_MAX_ID_CHARACTERS)] | None = None
    voice_settings: VoiceSettings | None = None
    """Counts in the first message of a context."""
    flush: bool | None = None
    close_context: bool | None = None
    close_socket: bool | None = None


class ElevenLabsSession:
    """One connection: a single context, or up to `MAX_CONTEXTS` with ids."""

    def __init__(
        self,
        websocket: WebSocket,
        requests: RequestBuilder,
        find_voice: Callable[[], Awaitable[Voice]],
        *,
        is_multi: bool,
    ) -> None:
        """``find_voice``: raises `VoiceUnknown`."""
        self._websocket = websocket
        self._requests = requests
        self._service = requests.service
        self._find_voice = find_voice
        self._voice: Voice | None = None
        self._is_multi = is_multi
        self._record = RequestRecord.of(websocket.scope)
        self._channel = Channel(websocket, requests.settings.send_timeout_s, self._record, self._is_busy)
        self._contexts: dict[str | None, Context] = {}
        self._interrupted: dict[str | None, Context] = {}
        """The last interrupted context of each id that has not finished; the id may be used again."""
        self._unfinished = 0
        self._group = anyio.create_task_group()

    async def run(self) -> None:
        """Serve the connection until it ends.

        Raises:
            EngineNotReady, OriginRefused, InvalidRequest, VoiceUnknown: the handshake is to be refused.
        """
        check_handshake(self._websocket, self._service, self._requests.settings)
        try:
            self._query = validated_text(SessionQuery, dict(self._websocket.query_params), "query")
        except MalformedBody as error:
            raise InvalidRequest(str(error), error.field, "query") from None
        encoder_of(self._query.output_format)
        if not self._record.is_key_pending:  # names of voices are for clients with a key
            await self._choose_voice()
        await self._channel.accept(self._ignored_header())
        try:
            with self._channel.scope:
                async with self._group:
                    self._group.start_soon(self._channel.end_at_shutdown, self._shutdown_message)
                    await self._read()
        finally:
            await self._channel.close()

    async def _choose_voice(self) -> None:
        """
        Raises:
            VoiceUnknown: there is none of this id.
        """
        self._voice = await self._find_voice()
        self._record.voice = self._voice.name

    def _ignored_header(self) -> list[tuple[bytes, bytes]]:
        """What of the query the engine cannot honour."""
        query, info = self._query, self._service.engine.info
        found = {
            "seed": query.seed is not None and Capability.SEED not in info.capabilities,
            "language_code": query.language_code and not info.reads(language_tag(query.language_code)),
            "ssml.phoneme": query.enable_ssml_parsing and Capability.PHONEMES not in info.capabilities,
        }
        header = ignored_header([name for name, is_ignored in found.items() if is_ignored])
        return [(name.lower().encode(), value.encode()) for name, value in header.items()]

    @staticmethod
    def _shutdown_message(error: ShuttingDown) -> dict[str, Any]:
        return error_message(error, RESTART)

    async def _read(self) -> None:
        while True:
            try:
                message = await self._channel.receive(self._query.inactivity_timeout)
                if message is None:
                    return
                if self._voice is None:
                    await self._choose_voice()
                await self._take(message)
            except SpeechServerError as error:  # a missing or wrong key among them
                await self._fail(error)
                return

    def _is_busy(self) -> bool:
        return any(context.is_busy for context in self._contexts.values())

    async def _fail(self, error: SpeechServerError) -> None:
        """Report an error and end the session."""
        await self._channel.send(error_message(error))
        self._channel.end(POLICY_VIOLATION, str(error), word_of(error))

    async def _take(self, message: Any) -> None:
        """Act on one message.

        Raises:
            SpeechServerError: the session cannot go on.
        """
        content, size = await message_fields(self._websocket, message, "text")
        try:
            if size > MAX_MESSAGE_BYTES:
                raise InvalidRequest(f"the message is larger than {MAX_MESSAGE_BYTES} bytes", "text")
            fields = validated(_Message, content, "body")
        except InvalidRequest as error:
            named = content.get("context_id") if self._is_multi and isinstance(content, dict) else None
            if not isinstance(named, str) or len(named) > _MAX_ID_CHARACTERS:
                raise
            await self._fail_context(error, named)
            return
        if self._is_multi and fields.close_socket:
            self._channel.end(1000, "", COMPLETE)
            return
        context_id = fields.context_id if self._is_multi else None
        context = self._contexts.get(context_id)
        if self._is_multi and fields.close_context:
            if context is not None:
                context.close()
                if context.is_cancelled:
                    self._interrupted[context_id] = self._contexts.pop(context_id)
            return
        if not self._is_multi and fields.text == "" and not fields.flush:
            await self._end_single(context)
            return
        await self._append(context_id, context, fields)

    async def _append(self, context_id: str | None, context: Context | None, fields: _Message) -> None:
        """Append to a context, which is opened if there is none.

        Raises:
            SpeechServerError: the session cannot go on.
        """
        if context is not None and (context.is_ended or context.is_cancelled):
            if self._is_multi and (fields.text or "").strip():
                closed = InvalidRequest("the context is closed; wait for its isFinal or use another id", "context_id")
                await self._channel.send(error_message(closed, contextId=context_id))
            return
        try:
            if context is None:
                if not fields.text:
                    return
                context = self._open(context_id, fields.voice_settings)
            self._write(context, fields)
        except TooManyContexts:
            raise
        except SpeechServerError as error:
            if not self._is_multi:
                raise
            await self._fail_context(error, context_id)

    async def _fail_context(self, error: SpeechServerError, context_id: str | None) -> None:
        """Report an error of one context, and end it if it is open."""
        await self._channel.send(error_message(error, contextId=context_id))
        if context := self._contexts.get(context_id):
            context.cancel()

    def _open(self, context_id: str | None, settings: VoiceSettings | None) -> Context:
        """
        Raises:
            SpeechServerError: too many contexts, settings out of range, or the wait would be too long.
        """
        if len(self._contexts) >= MAX_CONTEXTS or self._unfinished >= 2 * MAX_CONTEXTS:
            raise TooManyContexts(f"{MAX_CONTEXTS} contexts are open; close one first", "context_id")
        assert self._voice is not None
        query = self._query
        how = delivery(self._service.engine.info.capabilities, settings, query.seed)
        self._service.slot.check_wait(_MAX_WAIT_S)
        context = Context(
            self._requests,
            self._voice,
            how,
            encoder_of(query.output_format),
            self._channel,
            {"contextId": context_id} if self._is_multi else {},
            language=query.language_code or "",
            gets_sentences=query.auto_mode,
            counts_from_start=query.sync_alignment,
            reads_tags=query.enable_ssml_parsing,
        )
        self._contexts[context_id] = context
        self._unfinished += 1
        self._group.start_soon(self._speak, context_id, context, self._interrupted.get(context_id))
        return context

    def _write(self, context: Context, fields: _Message) -> None:
        """
        Raises:
            ForbiddenCharacter, TextTooLong: the text cannot be taken.
        """
        text = fields.text or ""
        if text:
            self._record.characters = (self._record.characters or 0) + len(text)
            context.write(text)
        if fields.flush:
            context.flush(has_text=bool(text.strip()))

    async def _end_single(self, context: Context | None) -> None:
        if context is not None:
            context.end()
            return
        await self._channel.send({"audio": None, "isFinal": True})
        self._channel.end(1000, "", COMPLETE)

    async def _speak(self, context_id: str | None, context: Context, interrupted: Context | None) -> None:
        """Run a context after an interrupted one of the same id; report how it ended."""
        try:
            if interrupted is not None:
                await interrupted.finished.wait()
            error = await context.run()
        finally:
            self._unfinished -= 1
            for contexts in (self._contexts, self._interrupted):
                if contexts.get(context_id) is context:
                    del contexts[context_id]
            self._record.add(context.stats)
        if not self._is_multi and error is not None:
            await self._fail(error)
            return
        named: dict[str, Any] = {"contextId": context_id} if self._is_multi else {}
        if error is not None:
            await self._channel.send(error_message(error, **named))
        await self._channel.send({"audio": None, "isFinal": True, **named})
        context.finished.set()
        if not self._is_multi:
            self._channel.end(1000, "", COMPLETE)
