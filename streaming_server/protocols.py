"""uvicorn's protocols for HTTP and WebSocket, with limits on connections and incomplete requests."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from streaming_server.joined_head import JoinedHead
from streaming_server.send_timeout import SendTimeout

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Maximum size of the request line and the headers, including trailers."""
_FEED_BYTES = 16 * 1024
"""Number of bytes passed to the parser at once, because it buffers an incomplete field without a limit."""
_MAX_PIPELINED = 8
"""Maximum number of requests of a connection that wait for the response to an earlier one."""
_MAX_PONG_BYTES = 64 * 1024
"""Maximum size of the replies to pings that a client does not read."""
_LINGER_S = 1.0
"""Time for which a rejected connection is still read, because a reset could overtake the response."""
_SESSION_END_S = 2.0
"""At shutdown, until a session is closed that has not ended by itself."""
_HOP_BY_HOP = {b"upgrade", b"http2-settings"}
_RETRYABLE = {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on connections and on incomplete requests."""

    connections: int
    """Maximum number of open connections."""
    connections_per_address: int
    header_timeout_s: float
    """From the connection, or the first byte of a further request, to the end of the headers."""
    body_timeout_s: float
    """Maximum time without a byte of the body."""
    body_min_rate: int
    """Minimum average rate of a body that takes longer than ``body_timeout_s``, in bytes per second."""
    send_timeout_s: float
    """Maximum time in which a client reads none of the unsent bytes."""


class SpeechProtocol(SendTimeout, HttpToolsProtocol):
    """uvicorn's protocol with limits, without upgrades other than to WebSocket, and with access to the transport.

    The request's state has ``transport``, to abort the connection of a slow reader, and ``ending``, an event that is
    set when the server shuts down, for endless responses.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*args, send_timeout_s=limits.send_timeout_s, **options)
        self._limits = limits
        self._ending = asyncio.Event()
        self._running: RequestResponseCycle | None = None
        """The request that is being answered, or was last; ``cycle`` is the one that was last received."""
        self._timer: asyncio.TimerHandle | None = None
        """Runs from the first byte of a request to the end of its body."""
        self._is_refused = False
        self._body_error: HTTPException | None = None
        """Raised where the application receives the body of the last request."""
        self._head_bytes = 0
        self._unparsed_bytes = 0
        """Bytes passed to the parser since its last callback."""
        self._body_bytes = 0
        self._body_began_s = self._body_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport, "ending": self._ending}
        self._arm(self._limits.header_timeout_s, self._check_head)
        peers = self.server_state.connections
        same = [peer for peer in peers if _address(peer) == self.address] if self.address else []
        if len(peers) > self._limits.connections and not _close_idle(peers):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"the server has {self._limits.connections} connections")
        elif len(same) > self._limits.connections_per_address and not _close_idle(same):
            limit = self._limits.connections_per_address
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, f"this address has {limit} connections")

    @property
    def address(self) -> str | None:
        """The client's address; None on a Unix socket."""
        return _address(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        self._ending.set()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._timer is None:
            self._arm(self._limits.header_timeout_s, self._check_head)
        for start in range(0, len(data), _FEED_BYTES):
            if self._is_refused or self.transport.is_closing():
                return
            protocol = self.transport.get_protocol()
            if protocol is not self:  # the connection was upgraded
                protocol.data_received(data[start:])  # type: ignore[attr-defined]
                return
            piece = data[start : start + _FEED_BYTES]
            self._unparsed_bytes += len(piece)
            self._feed(piece)
            if self._head_bytes + self._unparsed_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"the request head is larger than {MAX_HEAD_BYTES} bytes",
                )

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade() and self._is_answering():
                reason = "a WebSocket handshake was sent before the response to an earlier request"
                self._refuse(HTTPStatus.BAD_REQUEST, reason)
            elif self._should_upgrade() and self._head_bytes <= MAX_HEAD_BYTES:
                self._disarm()
                self._stop_send_timer()
                self.scope["method"] = "GET"
                self.handle_websocket_upgrade()
                if rest := data[upgrade.args[0] :]:
                    self.transport.get_protocol().data_received(rest)  # type: ignore[attr-defined]
            elif self.parser.get_method() == b"CONNECT":
                self._refuse(HTTPStatus.NOT_IMPLEMENTED, "CONNECT is not supported")
            else:
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self._feed(head + data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, "invalid HTTP request")

    def _head_without_upgrade(self) -> bytes:
        """Return the parsed head without ``Upgrade``, with which the parser would accept no body."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                kept = (part for part in value.split(b",") if part.strip().lower() not in _HOP_BY_HOP)
                lines.append(b"connection: " + b",".join(kept))
            elif name not in _HOP_BY_HOP:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _should_upgrade(self) -> bool:
        return super()._should_upgrade() and self.parser.get_method() == b"GET"

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_bytes += len(url)
        self._unparsed_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value) + len(": \r\n")
        self._unparsed_bytes = 0

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, f"more than {_MAX_PIPELINED} pipelined requests")
        if self._ignores_message():
            return
        was_paused = self.flow.read_paused
        super().on_headers_complete()
        if not was_paused:
            self.flow.resume_reading()  # otherwise a client that leaves would not be noticed
        self._body_bytes = 0
        self._body_began_s = self._body_s = self.loop.time()
        self._arm(self._limits.body_timeout_s, self._check_body)

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        self._body_bytes += len(body)
        self._body_s = self.loop.time()
        if not self._ignores_message():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._ignores_message():
            self._disarm()
            super().on_message_complete()
            self.cycle.more_body = False  # also if the response was complete before the body

    def _ignores_message(self) -> bool:
        """Whether the message is rejected, or will be parsed again without ``Upgrade``."""
        return self._is_refused or self._head_bytes > MAX_HEAD_BYTES or self.parser.should_upgrade()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.transport = JoinedHead(cycle.transport)  # type: ignore[assignment]
        cycle.receive = partial(self._receive, cycle)  # type: ignore[method-assign]
        is_old = cycle.scope["http_version"] in {"0.9", "1.0"}
        super()._start_asgi_task(cycle, partial(_without_chunks, cycle, app) if is_old else app)

    async def _receive(self, cycle: RequestResponseCycle) -> Any:
        """
        Raises:
            HTTPException: the body is rejected, and no response has started.
        """
        message = await RequestResponseCycle.receive(cycle)
        is_rejected = self._body_error is not None and cycle is self.cycle
        if is_rejected and message["type"] == "http.request" and not cycle.response_started:
            raise self._body_error  # type: ignore[misc]
        return message

    def _arm(self, delay_s: float, check: Any) -> None:
        self._disarm()
        self._timer = self.loop.call_later(delay_s, check)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_head(self) -> None:
        if self._is_answering():
            # a line break after the last body, or the start of another request
            self._arm(self._limits.header_timeout_s, self._check_head)
        else:
            seconds = self._limits.header_timeout_s
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request head was not complete within {seconds:g} s")

    def _check_body(self) -> None:
        limits, now_s = self._limits, self.loop.time()
        if self.flow.read_paused:  # the application does not read, so the client cannot continue
            self._body_began_s = self._body_s = now_s
            self._body_bytes = 0
        if now_s - self._body_s >= limits.body_timeout_s:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"no body data was received for {limits.body_timeout_s:g} s")
        elif self._body_bytes < limits.body_min_rate * (now_s - self._body_began_s):
            message = f"the body was received at less than {limits.body_min_rate} bytes per second"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, message)
        else:
            self._arm(self._body_s + limits.body_timeout_s - now_s, self._check_body)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Close the connection after an error response, which the application sends if the request has a complete head.

        If a response has started, only its connection is closed.
        """
        if self._is_refused:
            return
        self._is_refused = True
        self._disarm()
        log.info("connection refused: %s", message, extra={"fields": {"status": status, "client": self.client}})
        if self._is_answering() and not (self.cycle.more_body and self.cycle.response_started):
            self.cycle.keep_alive = False
            if self.cycle.more_body:
                self._body_error = HTTPException(status, message)
                self.cycle.message_event.set()
            return  # otherwise the rejected message follows a request whose response is being sent
        if self.cycle is not None and self.cycle.more_body:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            body = message.encode()
            retry = b"retry-after: 1\r\n" if status in _RETRYABLE else b""
            self.transport.write(
                STATUS_LINE[status]
                + b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % len(body)
                + retry
                + b"connection: close\r\n\r\n"
                + body
            )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.abort)


class SessionProtocol(SendTimeout, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol; aborts a client that pings without reading, or sends after its close frame."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ending = asyncio.Event()
        self._pong_bytes = 0
        """Size of the replies since the client has last read everything."""
        self.app_state = {**self.app_state, "ending": self._ending}

    def data_received(self, data: bytes) -> None:
        unsent_bytes = self.transport.get_write_buffer_size()
        try:
            super().data_received(data)
        except InvalidState:
            self.transport.abort()
        self._pong_bytes += max(0, self.transport.get_write_buffer_size() - unsent_bytes)
        if self._pong_bytes > _MAX_PONG_BYTES:
            self.transport.abort()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # refused; otherwise uvicorn logs an error, as if there were no response

    def resume_writing(self) -> None:
        self._pong_bytes = 0
        super().resume_writing()

    def shutdown(self) -> None:
        """Let the session end by its own protocol; one that does not is closed."""
        self._ending.set()
        if self.handshake_complete and not self.close_sent:
            self.loop.call_later(_SESSION_END_S, self._close)
        else:
            super().shutdown()

    def _close(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()


def _address(connection: object) -> str | None:
    """Return the client address of an HTTP or WebSocket connection; None for a Unix socket."""
    client = getattr(connection, "client", None)
    return str(client[0]) if client else None


def _close_idle(connections: Iterable[Any]) -> bool:
    """Close one connection that waits for a further request; returns False if there is none."""
    for connection in connections:
        if getattr(connection, "timeout_keep_alive_task", None) and not connection.transport.is_closing():
            connection.transport.close()
            return True
    return False


async def _without_chunks(cycle: RequestResponseCycle, app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Serve HTTP/1.0, which has no chunked encoding: a body without a length ends with the connection.

    Until the body is complete, closing the connection resets it, so that the client can tell that it is cut.
    """
    is_unframed = False

    def reset_on_close(enabled: bool) -> None:
        if not cycle.transport.is_closing():
            linger = struct.pack("ii", enabled, 0)
            cycle.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def unframed_send(message: Any) -> None:
        nonlocal is_unframed
        if message["type"] == "http.response.start":
            is_unframed = all(name.lower() != b"content-length" for name, _ in message.get("headers", []))
            if is_unframed:
                cycle.chunked_encoding = False
                reset_on_close(True)
        elif is_unframed:
            cycle.expected_content_length = len(message.get("body", b""))
            if not message.get("more_body", False):
                await cycle.flow.drain()
                reset_on_close(False)
        await send(message)

    await app(scope, receive, unframed_send)
