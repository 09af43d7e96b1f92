"""Requests are authenticated, logged and counted for every scope type and path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from streaming_server.api.http import ErrorShape, ErrorShapes
from streaming_server.api.middleware import ApiKeys, RequestLog, UnexpectedErrors
from streaming_server.errors import Unauthorized
from streaming_server.ops.metrics import Metrics
from tests.support.server import logged

pytestmark = pytest.mark.anyio
KEY = (b"x-api-key", b"secret")
DENIAL: dict[str, Any] = {"websocket.http.response": {}}


def shape() -> ErrorShape:
    return ErrorShape(lambda status, message, error: {"error": message}, dict)


async def speak(request: Request) -> Response:
    return PlainTextResponse("audio")


async def listen(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("audio")
    await websocket.close()


async def fail(websocket: WebSocket) -> None:
    raise ValueError("unexpected")


class Server:
    """An application behind the middleware, and the log of its requests."""

    def __init__(self, *, keys: tuple[str, ...] = ("secret",)) -> None:
        self.metrics = Metrics()
        shapes = ErrorShapes(shape(), {"/other": shape()})
        routes = [
            Route("/speak/{voice}", speak),
            Route("/other", speak),
            WebSocketRoute("/listen/{voice}", listen),
            WebSocketRoute("/fail", fail),
        ]
        middleware = [
            Middleware(RequestLog, metrics=self.metrics),
            Middleware(ApiKeys, keys=keys, shapes=shapes),
            Middleware(UnexpectedErrors, shapes=shapes),
        ]
        self.app: ASGIApp = Starlette(routes=routes, middleware=middleware)

    async def ask(self, kind: str, path: str, *headers: tuple[bytes, bytes], **scope: Any) -> list[Message]:
        sent: list[Message] = []
        coming: Iterator[Message] = iter([{"type": f"{kind}.connect" if kind == "websocket" else "http.request"}])

        async def receive() -> Message:
            return next(coming, {"type": "websocket.disconnect", "code": 1000})

        async def send(message: Message) -> None:
            sent.append(message)

        given = {"type": kind, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": list(headers)}
        await self.app(given | ({"method": "GET"} if kind == "http" else {}) | scope, receive, send)
        return sent

    def counted(self) -> list[tuple[str, str, str]]:
        """Method, route and status of each request."""
        families = text_string_to_metric_families(self.metrics.text().decode())
        samples = [s for family in families for s in family.samples if s.name == "speech_requests_total"]
        return [(s.labels["method"], s.labels["route"], s.labels["status"]) for s in samples]


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


@pytest.mark.parametrize("path", ["/speak/a", "/unknown"])
async def test_http_without_a_key(path: str, caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    start, _ = await server.ask("http", path)
    assert start["status"] == 401
    assert server.counted() == [("GET", "none", "401")]
    (fields,) = logged(caplog)
    assert (fields["route"], fields["status"], fields["outcome"]) == (path, 401, "invalid_api_key")


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_of_a_long_path_the_beginning_is_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    await Server().ask(kind, "/" + "\0" * 65_000)
    (fields,) = logged(caplog)
    assert fields["route"] == "/" + "\0" * 255 + "…"


@pytest.mark.parametrize(
    ("path", "template", "status"), [("/speak/a", "/speak/{voice}", 200), ("/unknown", "none", 404)]
)
async def test_http_with_a_key(path: str, template: str, status: int) -> None:
    server = Server()
    assert (await server.ask("http", path, KEY))[0]["status"] == status
    assert server.counted() == [("GET", template, str(status))]


async def test_a_websocket_without_a_key_is_denied(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    start, _ = await server.ask("websocket", "/listen/a", extensions=DENIAL)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert b"x-request-id" in dict(start["headers"])
    (closed,) = await server.ask("websocket", "/listen/a")
    assert (closed["type"], closed["code"]) == ("websocket.close", 1008)
    assert set(server.counted()) == {("WEBSOCKET", "none", "401"), ("WEBSOCKET", "none", "none")}
    assert [fields["outcome"] for fields in logged(caplog)] == ["invalid_api_key"] * 2


async def test_a_websocket_with_a_key_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    sent = await server.ask("websocket", "/listen/a", KEY)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert server.counted() == [("WEBSOCKET", "/listen/{voice}", "101")]
    (fields,) = logged(caplog)
    assert (fields["method"], fields["route"], fields["status"]) == ("WEBSOCKET", "/listen/a", 101)


async def test_a_websocket_that_fails_is_recorded_and_traced(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    with pytest.raises(ValueError, match="unexpected"):
        await server.ask("websocket", "/fail", KEY)
    assert server.counted() == [("WEBSOCKET", "/fail", "none")]
    assert [record.message for record in caplog.records] == ["unexpected error", "request"]


async def test_a_scope_of_an_unknown_type_needs_a_key_and_is_recorded() -> None:
    server = Server()
    with pytest.raises(Unauthorized):
        await server.ask("webtransport", "/speak/a")
    with pytest.raises(AssertionError):  # Starlette's: it serves no such scope
        await server.ask("webtransport", "/speak/a", KEY)
    assert server.counted() == [("WEBTRANSPORT", "none", "none")]


async def test_the_paths_that_are_open_are_open_over_http_alone() -> None:
    server = Server()
    assert (await server.ask("http", "/health"))[0]["status"] == 404
    assert (await server.ask("websocket", "/health"))[0]["type"] == "websocket.close"


async def test_every_dialect_takes_the_key_from_each_header() -> None:
    server = Server()
    for name in (b"x-api-key", b"xi-api-key"):
        assert (await server.ask("http", "/speak/a", (name, b"secret")))[0]["status"] == 200
        assert (await server.ask("http", "/speak/a", (name, b"wrong")))[0]["status"] == 401


async def test_the_life_of_the_server_is_no_request(caplog: pytest.LogCaptureFixture) -> None:
    reached: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        raise NotImplementedError

    shapes = ErrorShapes(shape(), {})
    stack = RequestLog(ApiKeys(UnexpectedErrors(app, shapes), ["secret"], shapes), Metrics())
    await stack({"type": "lifespan"}, nothing, nothing)
    assert reached == ["lifespan"]
    assert not logged(caplog)
