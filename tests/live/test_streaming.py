"""Behaviour on real sockets: first bytes, incomplete streams, the queue, disconnects and slow readers."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import httpx
import pytest

from streaming_server.audio.pcm import to_int16
from streaming_server.errors import EngineFailed
from tests.support.fakes import FOREVER, Gate, tone
from tests.support.server import LiveServer, RawClient, by_text, eventually, logged, running, speaking

PCM, OPUS = "/synthesize_stream", "/synthesize_stream_opus"


@pytest.mark.parametrize("path", [PCM, OPUS])
def test_the_first_byte_comes_long_before_the_last(path: str) -> None:
    rest = Gate()
    with (
        running(speaking(tone(0.2), rest, tone(0.2))) as live,
        live.client.stream("POST", path, json={"text": "a"}) as response,
    ):
        pieces = response.iter_bytes()
        assert next(pieces)
        rest.open()
        assert sum(len(piece) for piece in pieces) > 100


def test_headers_leave_with_the_first_audio() -> None:
    first = Gate()
    with running(speaking(first, tone(0.2))) as live:
        client = RawClient(live.port, OPUS, {"text": "a"})
        eventually(lambda: live.engine.running)
        client.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.read()
        client.socket.settimeout(120)
        first.open()
        assert client.read().startswith(b"HTTP/1.1 200")
        client.close()


@pytest.mark.parametrize("path", [PCM, OPUS, "/synthesize", "/synthesize_simple"])
@pytest.mark.parametrize("error", [ValueError("/home/secret"), EngineFailed("out of memory")])
def test_a_failure_before_the_first_audio_is_a_500(path: str, error: Exception) -> None:
    with running(by_text({"bad": [0.05, error], "good": [tone(0.1)]})) as live:
        response = live.post(path, {"text": "bad"})
        assert response.status_code == 500
        assert list(response.json()) == ["detail"]
        assert "secret" not in response.text
        assert live.post(path, {"text": "good"}).status_code == 200


@pytest.mark.parametrize("path", [PCM, OPUS])
def test_a_failure_after_the_first_audio_ends_without_the_final_chunk(path: str) -> None:
    with running(by_text({"bad": [tone(0.5), 0.2, ValueError("broken")], "good": [tone(0.1)]})) as live:
        received = RawClient(live.port, path, {"text": "bad"}).read_all()
        assert received.startswith(b"HTTP/1.1 200")
        assert len(received) > 2000
        assert not received.endswith(b"0\r\n\r\n")
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            live.post(path, {"text": "bad"})
        assert live.post(path, {"text": "good"}).status_code == 200


def test_requests_are_served_one_at_a_time_in_the_order_of_arrival() -> None:
    texts = [f"number {number}" for number in range(10)]
    gate = Gate()
    with running(speaking(gate, tone(0.05))) as live:
        threads = []
        for count, text in enumerate(texts, 1):
            threads.append(threading.Thread(target=live.post, args=(PCM, {"text": text})))
            threads[-1].start()
            eventually(lambda count=count: len(live.engine.requests) + waiting_count(live) == count)  # type: ignore[misc]
        gate.open()
        for thread in threads:
            thread.join()
        assert [request.text for request in live.engine.requests] == texts


def test_a_full_queue_is_a_503_with_retry_after() -> None:
    with running(speaking(tone(0.1), FOREVER), max_queue=2) as live:
        holding = [RawClient(live.port, PCM, {"text": str(number)}) for number in range(3)]
        eventually(lambda: waiting_count(live) == 2)
        for path in (PCM, OPUS, "/synthesize"):
            response = live.post(path, {"text": "one too many"})
            assert response.status_code == 503
            assert "2 requests" in response.json()["detail"]
            assert int(response.headers["retry-after"]) >= 1
        for client in holding:
            client.close()
        eventually(lambda: not live.queue()["is_processing"])


def test_a_wait_past_its_time_is_a_503() -> None:
    with running(speaking(tone(0.1), FOREVER), queue_timeout_s=0.1) as live:
        holding = RawClient(live.port, PCM, {"text": "a"})
        holding.read()
        response = live.post(OPUS, {"text": "b"})
        assert response.status_code == 503
        assert "0.1 s" in response.json()["detail"]
        assert int(response.headers["retry-after"]) >= 1
        holding.close()


def test_a_client_that_leaves_while_waiting_loses_its_place_at_once() -> None:
    with running(by_text({"long": [tone(0.1), FOREVER], "gone": [tone(0.1)], "next": [tone(0.1)]})) as live:
        holding = RawClient(live.port, PCM, {"text": "long"})
        holding.read()
        leaving = RawClient(live.port, PCM, {"text": "gone"})
        eventually(lambda: waiting_count(live) == 1)
        leaving.close()
        eventually(lambda: waiting_count(live) == 0)
        holding.close()
        assert live.post(PCM, {"text": "next"}).status_code == 200
        assert [request.text for request in live.engine.requests] == ["long", "next"]


@pytest.mark.parametrize("path", [PCM, OPUS, "/synthesize"])
def test_a_client_that_leaves_while_speaking_frees_the_slot(path: str) -> None:
    with running(speaking(tone(0.1), FOREVER)) as live:
        for _ in range(10):
            client = RawClient(live.port, path, {"text": "a"})
            eventually(lambda: live.engine.running)
            client.close()
            eventually(lambda: live.service.slot.status().holder is None)
            assert live.engine.running == 0


def test_the_next_one_speaks_when_the_holder_leaves() -> None:
    with running(by_text({"long": [tone(0.1), FOREVER], "next": [tone(0.1)]})) as live:
        holding = RawClient(live.port, PCM, {"text": "long"})
        holding.read()
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(live.post(PCM, {"text": "next"})))
        waiting.start()
        eventually(lambda: waiting_count(live) == 1)
        holding.close()
        waiting.join()
        assert answers[0].status_code == 200


def test_a_client_that_reads_nothing_does_not_delay_the_next() -> None:
    audio = [tone(1.0)] * 120
    with running(by_text({"unread": [*audio], "next": [tone(0.1)]}), send_timeout_s=FOREVER) as live:
        sleeping = RawClient(live.port, PCM, {"text": "unread"}, receive_buffer=4096)
        eventually(lambda: live.service.slot.status().holder is None and live.engine.requests)
        assert live.post(OPUS, {"text": "next"}).status_code == 200
        sleeping.close()


def waiting_count(live: LiveServer) -> int:
    return len(live.service.slot.status().waiting)


def test_a_client_that_falls_too_far_behind_is_cut_off_and_its_memory_freed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with running(by_text({"unread": [tone(1.0)] * 400, "next": [tone(0.1)]}), unsent_total_mb=8) as live:
        sleeping = RawClient(live.port, PCM, {"text": "unread"}, receive_buffer=4096)
        eventually(lambda: logged(caplog, outcome="reader_too_slow"))
        assert live.service.slot.status().holder is None
        assert live.service.budget.unsent_bytes == 0
        received = sleeping.read_all()
        assert not received.endswith(b"0\r\n\r\n")
        assert len(received) < 400 * 48000
        assert live.post(PCM, {"text": "next"}).status_code == 200


def test_a_client_that_takes_nothing_for_too_long_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with running(speaking(*[tone(1.0)] * 200), send_timeout_s=0.5) as live:
        sleeping = RawClient(live.port, PCM, {"text": "a"}, receive_buffer=4096)
        eventually(lambda: logged(caplog, outcome="reader_too_slow"))
        assert not sleeping.read_all().endswith(b"0\r\n\r\n")


def test_a_slow_reader_gets_everything(tmp_path: Any) -> None:
    with running(speaking(*[tone(1.0)] * 60)) as live:
        client = RawClient(live.port, PCM, {"text": "a"}, receive_buffer=16384)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += client.read(200_000)
            time.sleep(0.002)
        body = b"".join(piece for piece in chunks_of(received.partition(b"\r\n\r\n")[2]))
        assert body == to_int16(tone(1.0)).tobytes() * 60
        client.close()


def chunks_of(body: bytes) -> list[bytes]:
    """HTTP/1.1 chunked coding, undone."""
    found = []
    while body:
        size, _, body = body.partition(b"\r\n")
        found.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return found


def test_status_answers_while_a_stream_is_made_and_fifteen_wait() -> None:
    rest, answered = Gate(), Gate()
    with running(speaking(tone(0.1), rest, *[tone(1.0)] * 5, answered)) as live:
        threads = [threading.Thread(target=live.post, args=(OPUS, {"text": "a"})) for _ in range(16)]
        for thread in threads:
            thread.start()
        eventually(lambda: waiting_count(live) == 15)
        assert live.queue()["is_processing"]
        rest.open()
        # No stream ends before all these are answered: none of them waits for the work of a stream.
        for _ in range(len(threads) + 1):
            assert live.queue()["is_processing"]
        answered.open()
        for thread in threads:
            thread.join()


def test_a_body_that_never_ends_holds_no_slot() -> None:
    with running(speaking(tone(0.1))) as live:
        with socket.create_connection(("127.0.0.1", live.port), timeout=120) as connection:
            connection.sendall(b"POST /synthesize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            connection.sendall(b"Content-Length: 100\r\n\r\n{")
            assert live.post(PCM, {"text": "b"}).status_code == 200
        assert live.post(PCM, {"text": "c"}).status_code == 200


def test_a_whole_file_beyond_the_bound_is_a_status_and_no_cut_connection() -> None:
    with running(by_text({"long": [tone(1.0)] * 60, "next": [tone(0.1)]}), unsent_total_mb=4) as live:
        response = live.post("/synthesize", {"text": "long"})
        assert response.status_code == 500
        assert "request a stream" in response.json()["detail"]
        assert live.post("/synthesize", {"text": "next"}).status_code == 200


@pytest.mark.parametrize(("path", "outcome"), [("/streams/x", "stream_not_found"), ("/synthesize", "blank_text")])
def test_the_log_names_what_a_request_was_refused_for(
    caplog: pytest.LogCaptureFixture, path: str, outcome: str
) -> None:
    caplog.set_level("INFO")
    with running(speaking(tone(0.1))) as live:
        live.get(path) if path != "/synthesize" else live.post(path, {"text": ""})
        eventually(lambda: logged(caplog, outcome=outcome))
