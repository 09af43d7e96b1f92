"""Runs the application under uvicorn, with limits on connections and incomplete requests."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.supervisors import ChangeReload
from websockets.exceptions import InvalidState

from streaming_server import logs
from streaming_server.app import create_app
from streaming_server.errors import DeviceFailed
from streaming_server.joined_head import JoinedHead
from streaming_server.ops.debug import dump_stacks_on_signal
from streaming_server.settings import Settings, warn_of_removed
from streaming_server.startup import open_access, summary, unused_gpu

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Maximum size of the request line and the headers, including trailers."""
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Maximum size of a WebSocket message; a larger one closes the connection with 1009."""
_FEED_BYTES = 16 * 1024
"""Number of bytes passed to the parser at once, because it buffers an incomplete field without a limit."""
_KEEP_ALIVE_S = 75
"""Until an idle connection is closed: later than nginx and load balancers close theirs (60 s), because a request that
crosses the server's close is lost."""
_FAILED_S = 1.0
"""Time for which the server reports a failed device before it ends, so that gateways and clients can detect it."""
_BLOCKED_S = 10.0
"""Time for which a failed device may block the end of the process, in addition to ``shutdown_timeout_s``."""
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


class SpeechProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits, without upgrades other than to WebSocket, and with access to the transport.

    The request's state has ``transport``, to abort the connection of a slow reader, and ``ending``, an event that is
    set when the server shuts down, for endless responses.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._ending = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        """Runs from the first byte of a request to the end of its body."""
        self._is_refused = False
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
            if self._should_upgrade() and self._head_bytes <= MAX_HEAD_BYTES:
                self._disarm()
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
        if self._ignores_message():
            return
        super().on_headers_complete()
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

    def _ignores_message(self) -> bool:
        """Whether the message is rejected, or will be parsed again without ``Upgrade``."""
        return self._is_refused or self._head_bytes > MAX_HEAD_BYTES or self.parser.should_upgrade()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.transport = JoinedHead(cycle.transport)  # type: ignore[assignment]
        is_old = cycle.scope["http_version"] in {"0.9", "1.0"}
        super()._start_asgi_task(cycle, partial(_without_chunks, cycle, app) if is_old else app)

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
        """Close the connection, after an error response if none has started, without calling the application."""
        if self._is_refused:
            return
        self._is_refused = True
        self._disarm()
        log.info("connection refused: %s", message, extra={"fields": {"status": status, "client": self.client}})
        in_body = self.cycle is not None and self.cycle.more_body
        if self._is_answering() and not in_body:
            self.cycle.keep_alive = False  # the rejected message follows a request whose response is being sent
            return
        if not (in_body and self.cycle.response_started):
            body = message.encode()
            retry = b"retry-after: 1\r\n" if status in _RETRYABLE else b""
            self.transport.write(
                STATUS_LINE[status]
                + b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % len(body)
                + retry
                + b"connection: close\r\n\r\n"
                + body
            )
        if in_body:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.abort)


class SessionProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol; aborts a client that sends a message after its close frame."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ending = asyncio.Event()
        self.app_state = {**self.app_state, "ending": self._ending}

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except InvalidState:
            self.transport.abort()

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
    """Serve HTTP/1.0, which has no chunked encoding: a body without a length ends with the connection."""
    is_unframed = False

    async def unframed_send(message: Any) -> None:
        nonlocal is_unframed
        if message["type"] == "http.response.start":
            is_unframed = all(name.lower() != b"content-length" for name, _ in message.get("headers", []))
            if is_unframed:
                cycle.chunked_encoding = False
        elif is_unframed:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, unframed_send)


def connection_limits(settings: Settings) -> ConnectionLimits:
    """Return the limits of the settings; a quarter of the file descriptors is reserved for other uses."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ConnectionLimits(
        connections=min(settings.max_connections, descriptors * 3 // 4),
        connections_per_address=settings.max_connections_per_address,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        body_min_rate=settings.body_min_rate,
    )


class SpeechServer(uvicorn.Server):
    """uvicorn's server. Reports the configuration when the engine is ready, and ends if the device fails."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.exit_status = 0
        """Nonzero after a failure of the device."""
        self.on_ready: Callable[[], None] = lambda: None
        """Called once the server listens and the engine is warm."""
        self.on_device_failure: Callable[[], None] = lambda: None
        """Called before the shutdown, which a failed device may block."""
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tasks = [asyncio.create_task(self._report()), asyncio.create_task(self._end_without_device())]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._tasks:
            task.cancel()
        await super().shutdown(sockets)

    async def _end_without_device(self) -> None:
        await self.config.app.state.service.device_failed.wait()  # type: ignore[union-attr]
        await asyncio.sleep(_FAILED_S)
        log.error("server ends: exit_status=%d reason='the device failed'", DeviceFailed.exit_status)
        self.on_device_failure()
        self.exit_status = DeviceFailed.exit_status
        self.should_exit = True

    async def _report(self) -> None:
        state = self.config.app.state  # type: ignore[union-attr]
        await state.ready.wait()
        self.on_ready()
        info = state.service.engine.info
        if warning := await asyncio.to_thread(unused_gpu, info):
            log.warning(warning)
        if warning := open_access(self.config.host, state.has_keys):
            log.warning(warning)
        port = self.servers[0].sockets[0].getsockname()[1]
        log.info(summary(info, len(state.voices.all()), self.config.host, port))


def create_server(settings: Settings, **options: object) -> SpeechServer:
    """Create a server; ``options`` are passed to `create_app`.

    Raises:
        EngineUnavailable: the engine cannot start.
    """
    config = uvicorn.Config(
        create_app(settings, **options),  # type: ignore[arg-type]
        host=settings.host,
        port=settings.port,
        http=partial(SpeechProtocol, limits=connection_limits(settings)),  # type: ignore[arg-type]
        ws=SessionProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_timeout=settings.send_timeout_s,  # a client may not read for long while it plays buffered audio
        ws_per_message_deflate=False,  # encoded audio is not compressible
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )
    return SpeechServer(config)


def serve(settings: Settings, *, reload: bool = False) -> None:
    """Run until a signal; running streams then have ``shutdown_timeout_s`` to end.

    If the engine's device fails, the process ends with the exit status of `DeviceFailed`.

    Args:
        settings: the settings.
        reload: restart in a new process when a file of the package changes.
    """
    if not reload:
        _run(settings, None)
        return
    watched = [str(Path(__file__).parent)]
    config = uvicorn.Config(
        "", host=settings.host, port=settings.port, log_config=None, reload=True, reload_dirs=watched
    )
    ChangeReload(config, partial(_run, settings), [config.bind_socket()]).run()


def _run(settings: Settings, sockets: list[socket.socket] | None) -> None:
    # Set here, because a restarted process inherits neither.
    sys.setswitchinterval(0.0005)
    logs.configure(file=settings.log_path, form=settings.log_format, level=settings.log_level)
    warn_of_removed(os.environ)
    dump_stacks_on_signal()
    server = create_server(settings)
    server.on_ready = _freeze
    limit_s = settings.shutdown_timeout_s + _BLOCKED_S
    server.on_device_failure = lambda: faulthandler.dump_traceback_later(limit_s, exit=True)
    server.run(sockets)
    if server.exit_status:
        logging.shutdown()
        os._exit(server.exit_status)  # the CUDA runtime aborts where it is unloaded after a failure


def _freeze() -> None:
    """Exempt what lives as long as the process, the model included, from garbage collection.

    A full collection stops all threads; frozen objects reduce it from 50 ms to 1 ms.
    """
    gc.collect()
    gc.freeze()
