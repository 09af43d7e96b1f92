"""A real uvicorn on a real socket, and clients that see every byte when it comes."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from streaming_server.domain import SpeechRequest
from streaming_server.engines.base import Engine
from streaming_server.server import create_server
from streaming_server.settings import Settings
from streaming_server.speech.service import SpeechService
from tests.support.fakes import FakeEngine, Step

RECORDINGS = Path(__file__).parents[2] / "reference_audios"


@dataclass(frozen=True)
class LiveServer:
    port: int
    service: SpeechService
    client: httpx.Client
    routes: Sequence[BaseRoute]

    @property
    def engine(self) -> FakeEngine:
        assert isinstance(self.service.engine, FakeEngine)
        return self.service.engine

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def post(self, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def queue(self) -> dict[str, Any]:
        status: dict[str, Any] = self.get("/opus_queue_status").json()
        return status


@contextmanager
def running(engine: Engine | None = None, *, wait: bool = True, **settings: Any) -> Iterator[LiveServer]:
    """Serve until the ``with`` ends; ``wait`` for the engine to be ready."""
    with TemporaryDirectory() as data_dir:
        options: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": 0,
            "reference_audio_dir": RECORDINGS,
            "shutdown_timeout_s": 1,
            "data_dir": Path(data_dir),
            # Long deadlines, so that a busy test machine does not count as a slow client.
            "header_timeout_s": 600,
            "body_timeout_s": 600,
        } | settings
        with _served(create_server(Settings(**options), engine=engine), wait=wait) as live:
            yield live


@contextmanager
def _served(server: uvicorn.Server, *, wait: bool) -> Iterator[LiveServer]:
    server.config.timeout_keep_alive = 600  # else the server closes an idle connection just as a test uses it
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        app = server.config.app
        assert isinstance(app, Starlette)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            if wait:
                eventually(lambda: client.get("/health").status_code == 200)
            yield LiveServer(port, app.state.service, client, app.routes)
    finally:
        server.should_exit = True
        thread.join(180)
        assert not thread.is_alive()


def speaking(*script: Step) -> FakeEngine:
    """An engine that does the same for every text."""
    return FakeEngine(lambda _: list(script))


def by_text(scripts: dict[str, list[Step]]) -> FakeEngine:
    """An engine that does what its text names."""

    def script(request: SpeechRequest) -> list[Step]:
        return scripts[request.text]

    return FakeEngine(script)


class RawClient:
    """One request on a separate connection, which the server closes after the response, as raw bytes."""

    def __init__(
        self,
        port: int,
        path: str,
        body: dict[str, Any],
        *,
        receive_buffer: int | None = None,
        request_id: str = "raw",
        resumable: bool = False,
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(120)
        self.socket.connect(("127.0.0.1", port))
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        head += f"X-Request-Id: {request_id}\r\n"
        head += "X-Resumable: true\r\n" if resumable else ""
        self.socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)

    def read(self, size: int = 65536) -> bytes:
        return self.socket.recv(size)

    def read_all(self) -> bytes:
        """Until the server closes the connection, or resets it; then this side closes too."""
        received = b""
        try:
            while piece := self.read():
                received += piece
        except ConnectionResetError:
            pass
        self.close()
        return received

    def close(self) -> None:
        self.socket.close()


def around_now() -> Any:
    """Equal to every time in seconds since the epoch that is within ten minutes of now."""
    return pytest.approx(time.time(), abs=600)


def logged(caplog: pytest.LogCaptureFixture, **having: Any) -> list[dict[str, Any]]:
    """Return the fields of the requests in the log that have these values.

    The log may have requests of earlier tests too, since a request is logged after its response.
    """
    requests = [vars(record)["fields"] for record in caplog.records if record.message == "request"]
    return [fields for fields in requests if having.items() <= fields.items()]


def eventually(condition: Callable[[], object], within_s: float = 180.0) -> None:
    """Wait until a condition holds."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"it never came true within {within_s:.0f} s"
        time.sleep(0.005)
