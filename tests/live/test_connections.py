"""Unusual connections: upgrades, HTTP/1.0, large heads, incomplete requests, too many connections."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import httpx
import pytest

from streaming_server.joined_head import JoinedHead
from tests.support.fakes import FOREVER, tone
from tests.support.server import RECORDINGS, LiveServer, by_text, eventually, running, speaking

BODY = json.dumps({"text": "a"}).encode()
POST = b"POST /synthesize_stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SIZED = POST + b"Content-Length: %d\r\n" % len(BODY)
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
SETTINGS = b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(tone(0.1))) as live:
        yield live


@contextmanager
def connected(live: LiveServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", live.port), timeout=120) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    """Return the data received until the server closes the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def answers(live: LiveServer, request: bytes) -> bytes:
    """Return the complete response to the data, whose last request has ``Connection: close``."""
    with connected(live) as connection:
        with suppress(ConnectionResetError, BrokenPipeError):  # what it has answered before can be read
            connection.sendall(request)
        return everything(connection)


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n" + SETTINGS,
        b"Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n",
        b"Connection: upgrade,close\r\nUpgrade: TLS/1.0, anything\r\n",
    ],
    ids=["h2c", "websocket", "unknown"],
)
def test_an_upgrade_with_a_body_is_answered_as_if_it_had_not_been_asked_for(server: LiveServer, upgrade: bytes) -> None:
    plain = answers(server, SIZED + b"Connection: close\r\n\r\n" + BODY)
    assert plain.startswith(b"HTTP/1.1 200")
    given = answers(server, SIZED + upgrade + b"\r\n" + BODY)
    assert given.partition(b"\r\n\r\n")[2] == plain.partition(b"\r\n\r\n")[2]
    chunked = (
        POST + b"Transfer-Encoding: chunked\r\n" + upgrade + b"\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    )
    assert answers(server, chunked).startswith(b"HTTP/1.1 200")


def test_an_upgrade_in_pieces_and_a_request_behind_it(server: LiveServer) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + SETTINGS
    with connected(server) as connection:
        for byte in SIZED + upgrade + b"\r\n" + BODY[:3]:
            connection.sendall(bytes([byte]))
        rest = BODY[3:] + GET + upgrade + b"\r\n" + GET + b"Connection: close\r\n\r\n"
        connection.sendall(rest)
        assert everything(connection).count(b"HTTP/1.1 200") == 3


def test_the_head_of_a_stream_is_written_with_its_first_audio(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []

    class Noting:
        def __init__(self, transport: asyncio.Transport) -> None:
            self._transport = transport

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

        def write(self, data: bytes) -> None:
            written.append(data)
            self._transport.write(data)

    joined: Any = JoinedHead.__init__
    monkeypatch.setattr(JoinedHead, "__init__", lambda self, transport: joined(self, Noting(transport)))
    server.post("/synthesize_stream_opus", {"text": "a"})
    assert written[0].startswith(b"HTTP/1.1 200")
    assert written[0].count(b"OggS") == 3
    assert b"HTTP/1.1" not in b"".join(written[1:])


@pytest.mark.anyio
async def test_a_head_without_a_body_is_written_at_once() -> None:
    written: list[bytes] = []

    class Transport(asyncio.Transport):
        def write(self, data: Any) -> None:
            written.append(data)

        def close(self) -> None:
            written.append(b"closed")

    joined = JoinedHead(Transport())
    joined.write(b"head")
    await asyncio.sleep(0)
    joined.write(b"body")
    assert written == [b"head", b"body"]
    closed = JoinedHead(Transport())
    closed.write(b"head")
    closed.close()
    await asyncio.sleep(0)
    assert written[2:] == [b"head", b"closed"]


def test_connect_is_refused(server: LiveServer) -> None:
    assert answers(server, b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 501")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_stream_is_chunked_for_those_who_know_chunks(server: LiveServer, version: bytes) -> None:
    request = (SIZED + b"Connection: close\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/" + version) + BODY
    head, _, body = answers(server, request).partition(b"\r\n\r\n")
    assert b" 200 " in head
    assert (b"transfer-encoding: chunked" in head) == body.endswith(b"0\r\n\r\n") == (version == b"1.1")
    if version == b"1.0":
        assert len(body) == 0.1 * 24000 * 2


@pytest.mark.parametrize("fails", [False, True])
def test_http_1_0_gets_all_audio_and_a_reset_if_the_stream_is_cut(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(server.engine, "script", lambda _: [tone(10.0), *[ValueError("failed")] * fails])
    received = b""
    with socket.socket() as connection, pytest.raises(ConnectionResetError) if fails else nullcontext():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(SIZED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + BODY)
        while piece := connection.recv(65536):
            received += piece
    assert len(received.partition(b"\r\n\r\n")[2]) == 10.0 * 24000 * 2


def test_http_1_0_gets_a_body_of_known_length_with_it(server: LiveServer) -> None:
    head, _, body = answers(server, b"GET /model_info HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert json.loads(body)["engine"] == "fake"


def test_a_body_too_large_is_refused_instead_of_asked_for(server: LiveServer) -> None:
    upload = b"POST /api/v1/upload/audio HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\nHost: x\r\n"
    for head in (POST, upload):
        with connected(server) as connection:
            connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    with connected(server) as connection:
        connection.sendall(SIZED + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert everything(connection).startswith(b"HTTP/1.1 200")


@pytest.fixture(scope="module")
def locked() -> Iterator[LiveServer]:
    with running(speaking(tone(0.1)), api_keys=("secret",)) as live:
        yield live


MANY = b"".join(b"X-%d: 1\r\n" % number for number in range(7000))


@pytest.mark.parametrize(
    "request_",
    [
        GET + b"X: " + b"a" * 1_000_000,
        GET + MANY * 10,
        GET + MANY + b"\r\n",
        GET + b"X: " + b"a" * (64 * 1024) + b"\r\n\r\n",
        b"GET /health?" + b"a" * 1_000_000,
        b"GET /" + b"a" * (64 * 1024) + b" HTTP/1.1\r\n\r\n",
        b"GET" + b" " * 1_000_000,
    ],
    ids=["open field", "many open", "many", "field", "open path", "path", "blanks"],
)
def test_a_head_too_large_is_a_431_without_a_key(locked: LiveServer, request_: bytes) -> None:
    received = answers(locked, request_)
    assert received.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")), received[:100]
    assert b"connection: close" in received
    assert locked.get("/health").status_code == 200


def test_a_head_within_the_limit_is_served(server: LiveServer) -> None:
    assert answers(server, GET + b"Connection: close\r\nX: " + b"a" * 60_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_trailers_and_chunk_extensions_are_bounded_too(server: LiveServer) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    for rest in (b"1;" + b"a" * 1_000_000, b"0\r\nX: " + b"a" * 1_000_000, b"0\r\n" + MANY * 10):
        with connected(server) as connection:
            connection.sendall(chunked + rest)
            everything(connection)
    assert server.get("/health").status_code == 200


def test_a_head_too_large_behind_a_request_does_not_harm_its_answer(server: LiveServer) -> None:
    received = answers(server, SIZED + b"\r\n" + BODY + GET + b"X: " + b"a" * 200_000)
    assert received.startswith(b"HTTP/1.1 200")
    assert received.endswith(b"0\r\n\r\n")


@pytest.fixture(scope="module")
def hasty() -> Iterator[LiveServer]:
    with running(speaking(tone(0.1)), header_timeout_s=0.2) as live:
        yield live


@pytest.mark.parametrize("sent", [b"", b"\r\n", GET[:10], GET + b"X: a"], ids=["nothing", "break", "line", "headers"])
def test_a_head_that_is_not_complete_in_time_is_given_up(hasty: LiveServer, sent: bytes) -> None:
    assert answers(hasty, sent).startswith(b"HTTP/1.1 408")


def drip(connection: socket.socket, drop: bytes) -> bytes:
    """Send slowly until the server responds, and return the response."""
    connection.settimeout(0.02)
    for _ in range(9000):
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(drop)
        with suppress(TimeoutError):
            return connection.recv(1000)
    raise AssertionError("the connection stays")


def test_a_head_in_drops_is_given_up() -> None:
    with running(speaking(tone(0.1)), header_timeout_s=0.5) as live, connected(live) as connection:
        connection.sendall(GET)
        assert drip(connection, b"X: a\r\n").startswith(b"HTTP/1.1 408")


@pytest.fixture(scope="module")
def impatient() -> Iterator[LiveServer]:
    with running(by_text({"a": [tone(0.1)], "held": [FOREVER]}), body_timeout_s=0.2) as live:
        yield live


def half_a_body(path: str, sent: bytes = b"") -> bytes:
    kind = "multipart/form-data; boundary=b" if "upload" in path else "application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nOrigin: http://page\r\nContent-Type: {kind}\r\nContent-Length: 100\r\n"
    return f"{head}\r\n".encode() + sent


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/synthesize_stream", {"detail"}),
        ("/api/v1/upload/audio", {"success", "message"}),
        ("/generate-upload", {"success", "message"}),
        ("/v1/audio/speech", {"error"}),
    ],
)
@pytest.mark.parametrize("sent", [b"", b"--b\r\n"])
def test_a_body_that_stops_is_given_up(impatient: LiveServer, path: str, fields: set[str], sent: bytes) -> None:
    head, _, answer = answers(impatient, half_a_body(path, sent)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert fields <= set(json.loads(answer))
    assert b" 0.2 s" in answer or b"1024 bytes per second" in answer
    for header in (b"access-control-allow-origin: *", b"x-request-id: ", b"connection: close"):
        assert header in head
    assert impatient.get("/health").status_code == 200


def test_a_body_that_stops_does_not_delay_a_404(impatient: LiveServer) -> None:
    assert answers(impatient, half_a_body("/nowhere")).startswith(b"HTTP/1.1 404")


def test_a_bad_request_behind_a_body_that_nobody_read_is_answered(server: LiveServer) -> None:
    with connected(server) as connection:
        connection.sendall(half_a_body("/nowhere"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        connection.sendall(bytes(100) + b"no request\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 400")


def test_a_body_that_stops_does_not_harm_an_earlier_answer(impatient: LiveServer) -> None:
    first = SIZED + b"\r\n" + BODY
    whole = answers(impatient, SIZED + b"Connection: close\r\n\r\n" + BODY).partition(b"\r\n\r\n")[2]
    for rest in (half_a_body("/synthesize_stream"), POST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n"):
        received = answers(impatient, first + rest)
        assert received.startswith(b"HTTP/1.1 200")
        assert received.partition(b"\r\n\r\n")[2].startswith(whole + b"HTTP/1.1 40"), received[-500:]


def test_the_body_of_a_get_that_stops_ends_its_wait(impatient: LiveServer) -> None:
    received = answers(impatient, half_a_body("/synthesize_stream_opus?text=held").replace(b"POST", b"GET"))
    assert received.startswith(b"HTTP/1.1 408")
    assert b'{"detail":' in received
    eventually(lambda: impatient.queue()["queue_available"])


def test_a_body_in_drops_is_given_up() -> None:
    with running(speaking(tone(0.1)), body_timeout_s=0.5, body_min_rate=1000) as live, connected(live) as connection:
        connection.sendall(POST + b"Content-Length: 100000\r\n\r\n")
        assert drip(connection, b" ").startswith(b"HTTP/1.1 408")


def test_a_request_that_is_complete_has_no_deadline() -> None:
    def is_served(live: LiveServer, request: bytes) -> bool:
        with connected(live) as connection:
            with suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall(request)
            received = connection.recv(65536)
            if received.startswith(b"HTTP/1.1 408"):
                return False  # the machine stalled before the request was sent
            assert received.startswith(b"HTTP/1.1 200")
            while not received.endswith(b"0\r\n\r\n"):
                piece = connection.recv(65536)
                assert piece, received
                received += piece
            return True

    with running(speaking(tone(0.1), 1.0, tone(0.1)), header_timeout_s=0.1, body_timeout_s=0.1) as live:
        eventually(lambda: is_served(live, SIZED + b"Connection: close\r\n\r\n" + BODY))
        # Old clients end a body with a line break that is not part of it.
        eventually(lambda: is_served(live, SIZED + b"\r\n" + BODY + b"\r\n"))


def test_a_connection_between_requests_is_used_again(hasty: LiveServer) -> None:
    def is_kept(live: LiveServer) -> bool:
        with connected(live) as connection:
            for _ in range(3):
                with suppress(ConnectionResetError, BrokenPipeError):
                    connection.sendall(GET + b"\r\n")
                answer = connection.recv(65536)
                if answer.startswith(b"HTTP/1.1 408"):
                    return False  # the machine stalled before the request was sent
                assert answer.startswith(b"HTTP/1.1 200")
            connection.sendall(GET)
            assert everything(connection).startswith(b"HTTP/1.1 408")
            return True

    eventually(lambda: is_kept(hasty))


@pytest.mark.parametrize(
    ("limits", "status"),
    [({"max_connections": 3}, b"503"), ({"max_connections_per_address": 3}, b"429")],
    ids=["in all", "of one address"],
)
def test_connections_are_bounded_in_number(limits: dict[str, int], status: bytes) -> None:
    with running(speaking(tone(0.1)), wait=False, **limits) as live:
        eventually(lambda: httpx.get(f"http://127.0.0.1:{live.port}/health", timeout=120).status_code == 200)
        with connected(live), connected(live), connected(live):
            with connected(live) as one_too_many:
                received = everything(one_too_many)
            assert received.startswith(b"HTTP/1.1 " + status)
            assert b"retry-after" in received
        eventually(lambda: answers(live, GET + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200"))


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
def test_a_new_connection_takes_the_place_of_an_idle_one(limit: str) -> None:
    limits: dict[str, Any] = {limit: 3}
    with running(speaking(tone(0.1)), wait=False, **limits) as live, ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(connected(live))
            connection.sendall(GET + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_silent_connections_give_their_place_back() -> None:
    limits: dict[str, Any] = {"max_connections": 3, "header_timeout_s": 0.3}
    with (
        running(speaking(tone(0.1)), wait=False, **limits) as live,
        connected(live),
        connected(live),
        connected(live),
    ):
        eventually(lambda: answers(live, GET + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200"))


UPLOADS = ["/api/v1/upload/audio", "/generate-upload"]


def half_an_upload(path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    return f"{head}Content-Length: 500\r\n\r\n--b\r\n".encode()


@pytest.mark.parametrize("path", UPLOADS)
def test_an_upload_that_takes_too_long_is_given_up(path: str) -> None:
    with running(speaking(tone(0.1)), upload_timeout_s=0.2) as live:
        received = answers(live, half_an_upload(path))
        assert received.startswith(b"HTTP/1.1 408")
        assert b"the upload was not complete within 0.2 s" in received


@pytest.mark.parametrize("path", UPLOADS)
def test_uploads_are_bounded_in_number(path: str) -> None:
    with running(speaking(tone(0.1)), max_uploads=1) as live:
        recording = {"file": ("a.wav", (RECORDINGS / "voice_01.wav").read_bytes())}
        with ExitStack() as stack:

            def is_taken() -> bool:
                # One that arrives while a post of this test is being answered is refused itself, and tried again.
                stack.enter_context(connected(live)).sendall(half_an_upload(path))
                return live.client.post(path, files={"file": ("a.wav", b"x")}).status_code == 503

            eventually(is_taken)
            refused = live.client.post(path, files={"file": ("a.wav", b"x")})
            assert "retry-after" in refused.headers
            assert live.post("/synthesize_stream", {"text": "a"}).status_code == 200
        eventually(lambda: live.client.post(UPLOADS[0], files=recording).status_code == 200)


@pytest.mark.parametrize(
    ("settings", "origin", "status"),
    [
        ({"cors_origins": ("https://own.example",)}, "https://evil.example", 403),
        ({"cors_origins": ("https://own.example",)}, "null", 403),
        ({"cors_origins": ("https://own.example",)}, "https://own.example", 200),
        ({"cors_origins": ()}, "{own}", 200),
        ({"cors_origins": ()}, None, 200),
        ({}, "https://evil.example", 200),
        ({"api_keys": ("secret",)}, "https://evil.example", 401),
    ],
)
def test_uploads_of_other_sites_need_an_allowed_origin(
    settings: dict[str, Any], origin: str | None, status: int
) -> None:
    with running(speaking(tone(0.1)), **settings) as live:
        headers = {"Origin": origin.format(own=f"http://127.0.0.1:{live.port}")} if origin else {}
        recording = {"file": ("a.wav", (RECORDINGS / "voice_01.wav").read_bytes())}
        assert live.client.post(UPLOADS[0], files=recording, headers=headers).status_code == status
