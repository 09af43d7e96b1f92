"""What the WebSocket sessions share: receiving with an idle limit, sending, the end, and how many are open."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
from starlette.websockets import WebSocket, WebSocketDisconnect

from streaming_server.api.http import decoded, is_allowed_origin
from streaming_server.api.record import COMPLETE, DISCONNECTED, RequestRecord
from streaming_server.errors import (
    EngineNotReady,
    InvalidRequest,
    OriginRefused,
    ReaderTooSlow,
    SessionTimeout,
    ShuttingDown,
)
from streaming_server.settings import Settings
from streaming_server.speech.service import EngineState, SpeechService

RESTART = 1012
"""The code with which sessions are closed at shutdown."""
_CLOSE_S = 1.0
"""A reader that takes no close frame within this time is aborted."""
_MAX_REASON_BYTES = 123
"""Of a close frame, by RFC 6455."""
_INLINE_BYTES = 16 * 1024
"""A larger message is parsed in a thread."""


class OpenSessions(Counter[str]):
    """The number of sessions that are open, by protocol; as ``open_sessions`` in the state of the application."""


@contextmanager
def open_session(websocket: WebSocket, protocol: str) -> Iterator[None]:
    """Count a session for the body of the ``with``."""
    open_sessions: OpenSessions = websocket.app.state.open_sessions
    open_sessions[protocol] += 1
    try:
        yield
    finally:
        open_sessions[protocol] -= 1


class Channel:
    """The connection of a session."""

    def __init__(
        self, websocket: WebSocket, timeout_s: float, record: RequestRecord, is_busy: Callable[[], bool]
    ) -> None:
        """``timeout_s``: a reader that takes no message for this long ends the session.

        ``is_busy``: whether the client is still owed audio.
        """
        self._websocket = websocket
        self._timeout_s = timeout_s
        self._record = record
        self._code, self._reason = 1000, ""
        self._is_ended = False
        self._is_busy = is_busy
        self._active_s = 0.0
        self.scope = anyio.CancelScope()
        """Of all tasks of the session."""

    async def accept(self, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Accept the handshake."""
        await self._websocket.accept(headers=headers)
        self._touch()
        self._record.outcome, self._record.characters = DISCONNECTED, 0

    async def receive(self, idle_s: float, missing: str = "no message") -> Mapping[str, Any] | None:
        """The next message; None where the client has gone, which cancels the session.

        Raises:
            SessionTimeout: no message (``missing``, in the error) and nothing to send for ``idle_s`` seconds.
        """
        while True:
            try:
                async with asyncio.timeout_at(self._active_s + idle_s):
                    message = await self._websocket.receive()
            except TimeoutError:
                if self._is_busy():
                    self._touch()
                elif asyncio.get_running_loop().time() >= self._active_s + idle_s:
                    raise SessionTimeout(missing, idle_s) from None
            else:
                break
        self._touch()
        if message["type"] != "websocket.disconnect":
            return message
        if message.get("code") == RESTART:
            self._record.outcome = ShuttingDown.code
        elif message.get("code") in {1000, 1001} and not self._is_busy():
            self._record.outcome = COMPLETE
        self.scope.cancel()
        return None

    def _touch(self) -> None:
        """Begin the idle time anew."""
        self._active_s = asyncio.get_running_loop().time()

    async def send(self, message: Mapping[str, Any] | bytes) -> None:
        """Send a message; where the client has gone, or takes nothing for too long, the session is cancelled."""
        try:
            with anyio.fail_after(self._timeout_s):
                if isinstance(message, bytes):
                    await self._websocket.send_bytes(message)
                else:
                    await self._websocket.send_json(message)
            self._touch()
        except TimeoutError:
            self.end_slow(f"the reader took no byte for {self._timeout_s:g} s")
        except (WebSocketDisconnect, RuntimeError):  # the latter where uvicorn has closed for a malformed frame
            self.scope.cancel()
        await anyio.lowlevel.checkpoint()  # a send that does not wait would keep the loop from everything else

    def end(self, code: int, reason: str, outcome: str) -> None:
        """End the session; `close` sends the code and the reason of the first call."""
        if not self._is_ended:
            self._is_ended = True
            self._code, self._reason, self._record.outcome = code, reason, outcome
        self.scope.cancel()

    def end_slow(self, reason: str) -> None:
        """End the session of a reader that is too slow."""
        self.end(1008, reason, ReaderTooSlow.code)

    async def end_at_shutdown(self, report: Callable[[ShuttingDown], Mapping[str, Any]]) -> None:
        """Wait for the shutdown of the server; then send a message and end the session."""
        ending: asyncio.Event | None = self._websocket.scope["state"].get("ending")
        if ending is None:
            return
        await ending.wait()
        error = ShuttingDown()
        with anyio.move_on_after(_CLOSE_S):
            await self.send(report(error))
        self.end(RESTART, str(error), error.code)

    async def close(self) -> None:
        """Close the connection; abort it where the client does not read."""
        reason = self._reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        with anyio.move_on_after(_CLOSE_S, shield=True) as waiting, suppress(RuntimeError, WebSocketDisconnect):
            await self._websocket.close(self._code, reason)
        transport = self._websocket.scope["state"].get("transport")
        if waiting.cancelled_caught and transport is not None:
            transport.abort()


def check_handshake(websocket: WebSocket, service: SpeechService, settings: Settings) -> None:
    """
    Raises:
        EngineNotReady, OriginRefused: the handshake is to be refused.
    """
    if not is_allowed_origin(websocket.headers, settings.cors_origins):
        raise OriginRefused(websocket.headers["origin"])
    if service.state is not EngineState.READY:
        raise EngineNotReady


async def message_fields(websocket: WebSocket, message: Mapping[str, Any], field: str) -> tuple[Any, int]:
    """The JSON value of a message and its size in bytes; a large one is parsed in a thread.

    Raises:
        InvalidRequest: the message is binary, which ``field`` is named for, or not JSON.
    """
    text = message.get("text")
    if text is None:
        raise InvalidRequest("binary messages are not accepted; send JSON text", field)
    content = text.encode()
    if len(content) <= _INLINE_BYTES:
        return decoded(content), len(content)
    limiter = websocket.app.state.parsing
    return await anyio.to_thread.run_sync(decoded, content, limiter=limiter), len(content)
