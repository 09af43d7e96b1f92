"""Two servers behind a real HAProxy with the project's own configuration."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from streaming_server.api.operations import ApiRoute
from streaming_server.domain import SpeechRequest
from streaming_server.speech.service import EngineState
from tests.support.children import free_port
from tests.support.fakes import FOREVER, FakeEngine, Gate, Step, tone
from tests.support.gateway import Gateway, gateway
from tests.support.process import ServerProcess, server_process
from tests.support.scripted import SCRIPTED, until
from tests.support.server import LiveServer, RawClient, by_text, eventually, running, speaking

PCM, OPUS = "/synthesize_stream", "/synthesize_stream_opus"
SCRIPTS: dict[str, list[Step]] = {
    "long": [tone(0.1), FOREVER],
    "unread": [tone(1.0)] * 300,
    "shorter": [tone(1.0)] * 100,
    "next": [tone(0.1)],
}


@dataclass(frozen=True)
class Fleet:
    servers: tuple[LiveServer, LiveServer]
    gateway: Gateway
    client: httpx.Client

    def spoken(self) -> list[str]:
        return [request.text for live in self.servers for request in live.engine.requests]

    def speaking(self) -> int:
        return sum(live.engine.running for live in self.servers)

    def raw(self, text: str, path: str = PCM, **options: int) -> RawClient:
        return RawClient(self.gateway.port, path, {"text": text}, **options)  # type: ignore[arg-type]

    def hold(self) -> list[RawClient]:
        """Give both servers something that takes very long."""
        clients = [self.raw("long") for _ in self.servers]
        eventually(lambda: self.speaking() == 2)
        return clients


@contextmanager
def fleet(*engines: FakeEngine, **settings: Any) -> Iterator[Fleet]:
    """Two servers with these engines, by default with `SCRIPTS`, and settings."""
    first, second = engines or (by_text(SCRIPTS), by_text(SCRIPTS))
    agents = free_port(), free_port()
    with (
        running(first, agent_port=agents[0], **settings) as one,
        running(second, agent_port=agents[1], **settings) as two,
        gateway(one.port, two.port, agents) as front,
        httpx.Client(base_url=front.url, timeout=120) as client,
    ):
        servers = Fleet((one, two), front, client)
        try:
            yield servers
        except AssertionError as error:
            error.add_note(f"spoken: {servers.spoken()}, speaking: {servers.speaking()}")
            error.add_note(front.stats.get("/;csv").text if front.process.poll() is None else "HAProxy has ended")
            raise


def test_requests_are_spoken_in_the_order_of_arrival_whichever_server_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming_server.speech.service._USUAL_DRAIN_S", 60.0)  # each server takes one at a time
    order: list[str] = []
    ends = threading.Semaphore(0), threading.Semaphore(0)

    def engine(end: threading.Semaphore) -> FakeEngine:
        async def until_end() -> None:
            while not end.acquire(blocking=False):
                await asyncio.sleep(0.002)

        def script(request: SpeechRequest) -> list[Step]:
            order.append(request.text)
            return [until_end, tone(0.05)]

        return FakeEngine(script)

    arrivals = [f"number {number}" for number in range(12)]
    with fleet(engine(ends[0]), engine(ends[1])) as servers:
        threads = []
        for count, text in enumerate(arrivals):
            threads.append(threading.Thread(target=servers.client.post, args=(PCM,), kwargs={"json": {"text": text}}))
            threads[-1].start()
            eventually(lambda count=count: len(order) + servers.gateway.waiting() == count + 1)  # type: ignore[misc]
        for count, free in enumerate((0, 0, 0, 1, 0, 1, 1, 1, 1, 0), 3):
            ends[free].release()
            eventually(lambda count=count: len(order) == count)  # type: ignore[misc]
        assert order == arrivals
        for end in ends:
            end.release()
        for thread in threads:
            thread.join()


def test_audio_arrives_as_it_is_made() -> None:
    rest = Gate()
    engines = [speaking(tone(0.2), rest, tone(0.2)) for _ in range(2)]
    with fleet(*engines) as servers, servers.client.stream("POST", OPUS, json={"text": "a"}) as response:
        pieces = response.iter_bytes()
        assert next(pieces)
        rest.open()
        assert sum(len(piece) for piece in pieces) > 100


def test_what_is_spoken_waits_for_a_server_and_nothing_else_does() -> None:
    with running(FakeEngine()) as live:
        described = [route for route in live.routes if isinstance(route, ApiRoute)]
    with fleet() as servers:
        holding = servers.hold()
        for route in described:
            for method in sorted(route.methods or ()):
                path = route.path_format.replace("{audio_index}", "0")
                with socket.create_connection(("127.0.0.1", servers.gateway.port), 180) as asking:
                    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
                    asking.sendall(head.encode())
                    refusals = set(route.operation.refusals)
                    # A workflow (408) waits for tasks, and only these for the slot.
                    if {500, 503} <= refusals and 408 not in refusals and method != "HEAD":
                        eventually(lambda: servers.gateway.waiting() == 1)
                    else:
                        assert asking.recv(100).startswith(b"HTTP/1.1 "), path
                        assert servers.gateway.waiting() == 0, path
                eventually(lambda: servers.gateway.waiting() == 0)
        encoded = servers.raw("next", PCM.replace("s", "%73"))
        eventually(lambda: servers.gateway.waiting() == 1)
        encoded.close()
        for client in holding:
            client.close()


def test_one_client_takes_neither_all_connections_nor_a_server_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONNECTIONS_PER_ADDRESS", "21")
    monkeypatch.setenv("SERVER_CONNECTIONS", "4")
    events = b"GET /opus_queue_status/events HTTP/1.1\r\nHost: x\r\n\r\n"
    with fleet(max_connections_per_address=10) as servers, ExitStack() as opened:
        assert servers.client.post(PCM, json={"text": "next"}).status_code == 200  # the first of the connections
        for _ in range(20):
            opened.enter_context(socket.create_connection(("127.0.0.1", servers.gateway.port), 120)).sendall(events)
        eventually(lambda: int(servers.gateway.figure("qcur", "all_else")) == 12)
        with (
            suppress(ConnectionResetError, BrokenPipeError),
            socket.create_connection(("127.0.0.1", servers.gateway.port), 120) as refused,
        ):
            refused.sendall(events)
            assert not refused.recv(100)
        checks = [servers.gateway.figure("check_status", server=server) for server in ("gpu1", "gpu2")]
        assert [check[-4:] for check in checks] == ["L7OK"] * 2
        assert servers.client.post(PCM, json={"text": "next"}).status_code == 200
        opened.close()
        eventually(lambda: servers.client.get("/health").status_code == 200)


def test_what_no_client_may_ask_is_refused_at_once() -> None:
    with fleet() as servers:
        holding = servers.hold()
        for method, path in (("GET", PCM), ("GET", "/v1/audio/speech"), ("DELETE", OPUS), ("POST", "/test")):
            assert servers.client.request(method, path).status_code == 405
        for path in ("/metrics", "/debug/streams", "/%6detrics", "/debug%2Fstreams", "/%64ebug/streams"):
            assert servers.client.get(path).status_code == 404
        assert servers.client.head("/test").status_code == 200
        for client in holding:
            client.close()


@pytest.mark.parametrize("path", [PCM, OPUS, "/synthesize"])
def test_a_client_that_leaves_frees_its_server(path: str) -> None:
    with fleet() as servers:
        for _ in range(8):
            client = servers.raw("long", path)
            eventually(servers.speaking)
            client.close()
            eventually(lambda: servers.speaking() == 0)


def test_a_client_that_leaves_the_queue_is_never_spoken_to() -> None:
    with fleet() as servers:
        holding = servers.hold()
        leaving = servers.raw("unread")
        eventually(lambda: servers.gateway.waiting() == 1)
        exported = servers.gateway.stats.get("/metrics").text.splitlines()
        assert 'haproxy_backend_current_queue{proxy="speech"} 1' in exported  # as docs/scaling.md names it
        leaving.close()
        eventually(lambda: servers.gateway.waiting() == 0)
        holding.pop().close()
        assert servers.client.post(PCM, json={"text": "next"}).status_code == 200
        assert "unread" not in servers.spoken()
        holding.pop().close()


# Both are larger than what the kernel holds for a client; the shorter one would fit into HAProxy's own buffers there.
@pytest.mark.parametrize("text", ["unread", "shorter"])
def test_readers_that_read_nothing_keep_no_server_from_the_next(text: str) -> None:
    with fleet() as servers, ExitStack() as opened:
        for _ in range(4):
            opened.callback(servers.raw(text, receive_buffer=4096).close)
        eventually(lambda: servers.spoken().count(text) == 4 and servers.speaking() == 0)
        assert servers.client.post(PCM, json={"text": "next"}).status_code == 200


def test_a_body_that_comes_slowly_takes_nobodys_turn() -> None:
    with fleet() as servers:
        slow = []
        for _ in servers.servers:
            slow.append(socket.create_connection(("127.0.0.1", servers.gateway.port)))
            slow[-1].sendall(f"POST {PCM} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode())
            slow[-1].sendall(b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.1)
        assert servers.client.post(PCM, json={"text": "next"}).status_code == 200
        for connection in slow:
            connection.close()


def test_a_stream_is_continued_by_the_server_that_made_it() -> None:
    with fleet() as servers:
        streams = [servers.client.post(OPUS, json={"text": "next"}) for _ in range(6)]
        assert all(live.engine.requests for live in servers.servers)
        for stream in streams:
            for _ in servers.servers:  # taking turns would find it once
                rest = servers.client.get(f"/streams/{stream.headers['x-stream-id']}", params={"from": 100})
                assert rest.content == stream.content[100:]


def test_without_any_server_a_client_is_told_when_to_try_again() -> None:
    with fleet() as servers:
        for live in servers.servers:
            live.service.state = EngineState.FAILED
        for server in ("gpu1", "gpu2"):
            eventually(lambda server=server: not servers.gateway.up(server))  # type: ignore[misc]
        response = servers.client.post("/v1/audio/speech", json={"input": "a", "voice": "alloy"})
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["detail"] == response.json()["error"]["message"]


def test_one_server_is_enough() -> None:
    with (
        running(speaking(tone(0.5))) as server,
        gateway(server.port, free_port(), (free_port(), free_port()), present=1) as front,
    ):
        response = httpx.post(f"{front.url}/synthesize", json={"text": "Alone."}, timeout=120)
    assert response.status_code == 200


def test_the_next_request_goes_to_the_other_server_when_one_is_killed() -> None:
    agents = free_port(), free_port()
    with (
        server_process(**SCRIPTED) as doomed,
        server_process(**SCRIPTED) as other,
        gateway(doomed.port, other.port, agents) as front,
        httpx.Client(base_url=front.url, timeout=120) as client,
    ):
        doomed.stop(signal.SIGKILL)
        for _ in range(4):
            # The gateway does not know yet; it tries, and sends the same request to the other.
            response = client.post("/synthesize", json={"text": "Who speaks?"})
            assert response.status_code == 200
            assert response.content[:4] == b"RIFF"
        eventually(lambda: not front.up("gpu1"))
        assert front.up("gpu2")


def test_a_stream_whose_server_is_killed_ends_cut_and_the_queue_moves_on(tmp_path: Path) -> None:
    agents = free_port(), free_port()
    endings: list[str] = []
    with (
        server_process(**SCRIPTED, AGENT_PORT=str(agents[0])) as doomed,
        server_process(**SCRIPTED, AGENT_PORT=str(agents[1])) as other,
        gateway(doomed.port, other.port, agents) as front,
        httpx.Client(base_url=front.url, timeout=120) as client,
    ):

        def ask(text: str) -> None:
            try:
                endings.append(f"{text[:5]} {client.post(PCM, json={'text': text}).status_code}")
            except httpx.RemoteProtocolError:
                endings.append(f"{text[:5]} cut")

        texts = [until(tmp_path / "end"), until(tmp_path / "end"), "queued"]
        threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
        for thread in threads[:2]:
            thread.start()
        eventually(lambda: is_processing(doomed) and is_processing(other))
        threads[2].start()
        eventually(lambda: front.waiting() == 1)
        doomed.stop(signal.SIGKILL)
        eventually(lambda: endings == ["until cut"])
        (tmp_path / "end").touch()
        for thread in threads:
            thread.join()
        assert sorted(endings) == ["queue 200", "until 200", "until cut"]


def is_processing(server: ServerProcess) -> bool:
    found: bool = httpx.get(f"{server.url}/opus_queue_status", timeout=120).json()["is_processing"]
    return found
