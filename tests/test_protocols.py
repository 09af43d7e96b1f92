"""uvicorn's protocols with limits, on real sockets in one event loop, in front of small applications."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

from streaming_server.protocols import ConnectionLimits, SessionProtocol, SpeechProtocol

pytestmark = pytest.mark.anyio
GET = b"GET / HTTP/1.1\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that the server uses."""
    return "asyncio", {"use_uvloop": True}


@asynccontextmanager
async def connected(app: ASGIApp, *, send_timeout_s: float = 600.0) -> AsyncIterator[tuple[socket.socket, ServerState]]:
    """A connection with a small buffer to a server of the application, and the server's connections and tasks."""
    limits = ConnectionLimits(100, 100, 600.0, 600.0, 1, send_timeout_s)
    config = uvicorn.Config(app, ws=partial(SessionProtocol, send_timeout_s=send_timeout_s), log_config=None)  # type: ignore[arg-type]
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SpeechProtocol(config, state, {}, limits=limits), "127.0.0.1", 0)
    async with server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, server.sockets[0].getsockname())
            yield client, state
        for connection in state.connections:
            connection.transport.abort()
        for task in list(state.tasks):
            await task


def only(state: ServerState) -> Any:
    """The server's connection."""
    (connection,) = state.connections
    return connection


async def received(client: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    data = b""
    while piece := await asyncio.get_running_loop().sock_recv(client, 65536):
        data += piece
    return data


async def lost(state: ServerState) -> None:
    """Wait until the server has no connection."""
    async with asyncio.timeout(60):
        while state.connections:
            await asyncio.sleep(0.01)


async def test_a_flood_of_pipelined_requests_is_answered_in_part_and_closed() -> None:
    served: list[Scope] = []
    may_answer = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope)
        await may_answer.wait()
        await PlainTextResponse("answer")(scope, receive, send)

    async with connected(app) as (client, state):
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(client, GET * 5000))
        async with asyncio.timeout(60):
            while not served:
                await asyncio.sleep(0)
            await sending
        connection = only(state)
        assert len(connection.pipeline) == 8
        may_answer.set()
        data = await received(client)
    assert data.count(b"HTTP/1.1 200") == len(served) == 9
    assert data.count(b"connection: close") == 1


async def chunks(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for left in reversed(range(8)):
        await send({"type": "http.response.body", "body": bytes(1024 * 1024), "more_body": left > 0})


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(bytes(8 * 1024 * 1024))(scope, receive, send)


async def session(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "bytes": bytes(8 * 1024 * 1024)})
    await send({"type": "websocket.close", "code": 1000})


async def whole_then_session(scope: Scope, receive: Receive, send: Send) -> None:
    await (whole if scope["type"] == "http" else session)(scope, receive, send)


@pytest.mark.parametrize(
    ("app", "request_"),
    [
        (chunks, GET),
        (whole, GET),
        (whole, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")),
        (session, UPGRADE),
    ],
    ids=["a running response", "a kept connection", "a closing connection", "a session"],
)
async def test_a_connection_whose_client_reads_nothing_is_aborted(app: Any, request_: bytes) -> None:
    async with connected(app, send_timeout_s=0.1) as (client, state):
        client.send(request_)
        async with asyncio.timeout(60):
            while not state.connections:
                await asyncio.sleep(0)
        await lost(state)
        assert len(await received(client)) < 8 * 1024 * 1024


async def test_a_session_behind_an_answer_that_nobody_reads_is_aborted() -> None:
    async with connected(whole_then_session) as (client, state):
        client.send(GET)
        async with asyncio.timeout(60):
            while not state.connections or not only(state).cycle or not only(state).cycle.response_complete:
                await asyncio.sleep(0)
            client.send(UPGRADE)
            while isinstance(only(state), SpeechProtocol):
                await asyncio.sleep(0)
        connection = only(state)
        assert connection._send_timer is not None
        connection._check_sending(connection.transport.get_write_buffer_size())
        await lost(state)


async def test_a_connection_whose_client_reads_slowly_stays() -> None:
    async with connected(whole) as (client, state):
        client.send(GET)
        async with asyncio.timeout(60):
            while not (state.connections and only(state).flow.write_paused):
                await asyncio.sleep(0)
            connection = only(state)
            unsent_bytes, read_bytes = connection.transport.get_write_buffer_size(), 0
            while connection.transport.get_write_buffer_size() == unsent_bytes:
                read_bytes += len(await asyncio.get_running_loop().sock_recv(client, 65536))
            assert read_bytes < 512 * 1024
        connection._check_sending(unsent_bytes)
        assert not connection.transport.is_closing()
        connection._check_sending(connection.transport.get_write_buffer_size())
        await lost(state)


async def test_pings_without_reading_are_bounded() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async with connected(app) as (client, state):
        client.send(UPGRADE)
        ping = Frame(Opcode.PING, bytes(125)).serialize(mask=True)
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(1000):
                await asyncio.get_running_loop().sock_sendall(client, ping * 1000)
        await lost(state)


async def test_a_handshake_behind_a_request_that_is_being_answered_is_refused() -> None:
    may_answer = asyncio.Event()
    kinds: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kinds.append(scope["type"])
        await may_answer.wait()
        await PlainTextResponse("answer")(scope, receive, send)

    async with connected(app) as (client, _):
        client.send(GET + UPGRADE)
        async with asyncio.timeout(60):
            while not kinds:
                await asyncio.sleep(0)
        may_answer.set()
        data = await received(client)
    assert kinds == ["http"]
    assert data.count(b"HTTP/1.1") == 1
    assert data.endswith(b"answer")


@pytest.mark.parametrize("later", [0, 1, 3])
async def test_a_client_that_leaves_is_noticed_with_requests_behind_the_one_that_is_answered(later: int) -> None:
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with connected(app) as (client, state):
        client.send(GET)
        async with asyncio.timeout(60):
            while not state.tasks:
                await asyncio.sleep(0)
            for number in range(later):
                client.send(GET)
                while len(only(state).pipeline) <= number:
                    await asyncio.sleep(0)
            client.shutdown(socket.SHUT_RDWR)
            await left.wait()
            await lost(state)
