"""Resuming a stream after a disconnect, byte for byte."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_server.audio.pcm import to_int16
from streaming_server.speech.service import MAX_KEPT_STREAMS
from tests.support.fakes import FOREVER, Gate, tone
from tests.support.server import LiveServer, RawClient, eventually, running, speaking

OPUS, PCM = "/synthesize_stream_opus", "/synthesize_stream"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(*[tone(0.5)] * 6)) as live:
        yield live


@pytest.fixture(scope="module")
def whole(server: LiveServer) -> httpx.Response:
    return server.post(OPUS, {"text": "a"})


def read_some(live: LiveServer, path: str, least: int, **headers: str) -> tuple[str, bytes]:
    """Return a stream's id and its first bytes, then disconnect."""
    with live.client.stream("POST", path, json={"text": "a"}, headers=headers) as response:
        received = b""
        for piece in response.iter_raw():
            received += piece
            if len(received) >= least:
                break
        return response.headers["x-stream-id"], received


@settings(max_examples=60)
@given(data=st.data())
def test_any_cut_is_continued_byte_for_byte(server: LiveServer, whole: httpx.Response, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(whole.content) - 1))
    path = f"/streams/{whole.headers['x-stream-id']}"
    by_query = server.get(path, params={"from": cut})
    assert (by_query.status_code, by_query.headers["x-stream-offset"]) == (200, str(cut))
    by_range = server.get(path, headers={"Range": f"bytes={cut}-"})
    assert by_range.status_code == 206
    assert by_range.headers["content-range"] == f"bytes {cut}-{len(whole.content) - 1}/{len(whole.content)}"
    assert by_query.content == by_range.content == whole.content[cut:]
    assert by_range.headers["content-type"] == "audio/ogg"
    assert len(server.engine.requests) == 1, "a second synthesis"


def test_a_stream_that_is_being_made_is_continued_while_it_is() -> None:
    second, third = Gate(), Gate()
    engine = speaking(tone(0.5), second, tone(0.5), third, tone(0.5))
    with running(engine, resume_grace_s=FOREVER) as live:
        stream_id, received = read_some(live, PCM, 24000, **{"X-Resumable": "true"})
        with live.client.stream("GET", f"/streams/{stream_id}", params={"from": len(received)}) as response:
            # The headers do not wait for the next byte, which a slow engine may take long to make.
            second.open()
            assert (response.status_code, response.headers["x-stream-offset"]) == (200, str(len(received)))
            pieces = response.iter_raw()
            received += next(pieces)
            third.open()
            received += b"".join(pieces)
        assert received == to_int16(tone(0.5)).tobytes() * 3
        assert len(live.engine.requests) == 1


@pytest.mark.parametrize(
    ("grace_s", "asked", "told"), [(10, "true", "true"), (10, "false", "false"), (0, "true", "false")]
)
def test_the_answer_tells_whether_the_synthesis_continues(grace_s: float, asked: str, told: str) -> None:
    with running(speaking(tone(0.1)), resume_grace_s=grace_s) as live:
        answer = live.client.post(PCM, json={"text": "a"}, headers={"X-Resumable": asked})
    assert answer.headers["x-resumable"] == told


def test_a_range_of_a_running_stream_is_a_200_with_its_offset() -> None:
    rest = Gate()
    with running(speaking(tone(0.5), rest, tone(0.1)), resume_grace_s=FOREVER) as live:
        stream_id, _ = read_some(live, PCM, 24000, **{"X-Resumable": "1"})
        path, headers = f"/streams/{stream_id}", {"Range": "bytes=1000-"}
        with live.client.stream("GET", path, headers=headers) as response:
            assert (response.status_code, response.headers["x-stream-offset"]) == (200, "1000")
            rest.open()
            assert len(response.read()) == 24000 + 4800 - 1000


def test_without_the_clients_wish_its_leaving_frees_the_slot_and_what_was_made_stays() -> None:
    with running(speaking(tone(0.5), FOREVER), resume_grace_s=FOREVER) as live:
        stream_id, received = read_some(live, PCM, 24000)
        eventually(lambda: live.service.slot.status().holder is None)
        assert received == to_int16(tone(0.5)).tobytes()
        with pytest.raises(httpx.RemoteProtocolError):
            live.get(f"/streams/{stream_id}", params={"from": 10})
        with live.client.stream("GET", f"/streams/{stream_id}", params={"from": 10}) as response:
            assert next(response.iter_raw(23990)) == received[10:]


def test_a_resumable_synthesis_ends_after_its_grace() -> None:
    with running(speaking(tone(0.5), FOREVER), resume_grace_s=0.3) as live:
        began_s = time.monotonic()
        read_some(live, PCM, 24000, **{"X-Resumable": "true"})
        eventually(lambda: live.service.slot.status().holder is None)
        assert time.monotonic() - began_s >= 0.3


def test_who_leaves_before_the_headers_cannot_come_back_and_is_not_waited_for() -> None:
    with running(speaking(FOREVER, tone(0.1)), resume_grace_s=FOREVER) as live:
        client = RawClient(live.port, PCM, {"text": "a"}, resumable=True)
        eventually(lambda: live.engine.running)
        client.close()
        eventually(lambda: live.service.slot.status().holder is None)
        eventually(lambda: not live.service.streams)  # kept, it would take the place of one that can be continued


def test_delete_frees_the_slot_at_once_and_forgets_the_stream() -> None:
    with running(speaking(tone(0.5), FOREVER), resume_grace_s=FOREVER) as live:
        stream_id, _ = read_some(live, PCM, 24000, **{"X-Resumable": "true"})
        assert live.client.delete(f"/streams/{stream_id}").status_code == 204
        assert live.service.slot.status().holder is None
        assert live.get(f"/streams/{stream_id}").status_code == 404
        assert live.client.delete(f"/streams/{stream_id}").status_code == 404


@pytest.mark.parametrize("stream_id", ["x", "a" * 500, "..%2f..%2fetc", "%00"])
def test_an_unknown_id_is_404(server: LiveServer, stream_id: str) -> None:
    response = server.get(f"/streams/{stream_id}")
    assert (response.status_code, list(response.json())) == (404, ["detail"])


@pytest.mark.parametrize("past", [0, 1, 10**15])
def test_past_the_end_is_416(server: LiveServer, whole: httpx.Response, past: int) -> None:
    path, size = f"/streams/{whole.headers['x-stream-id']}", len(whole.content)
    response = server.get(path, headers={"Range": f"bytes={size + past}-"})
    assert (response.status_code, response.headers["content-range"]) == (416, f"bytes */{size}")
    by_query = server.get(path, params={"from": size + past})
    assert (by_query.status_code, by_query.content) == (200, b"") if past == 0 else by_query.status_code == 416


@pytest.mark.parametrize(("first", "last"), [(0, 1), (5, 5), (100, 70_000), (0, 10**9)])
def test_a_closed_range_ends_where_it_says(server: LiveServer, whole: httpx.Response, first: int, last: int) -> None:
    path, size = f"/streams/{whole.headers['x-stream-id']}", len(whole.content)
    response = server.get(path, headers={"Range": f"bytes={first}-{last}"})
    assert response.status_code == 206
    assert response.content == whole.content[first : last + 1]
    assert response.headers["content-range"] == f"bytes {first}-{min(last, size - 1)}/{size}"


@pytest.mark.parametrize("range_", ["bytes=-5", "bytes=7-5", "items=1-", "bytes=x-", "bytes=1-,5-"])
def test_other_ranges_are_ignored(server: LiveServer, whole: httpx.Response, range_: str) -> None:
    response = server.get(f"/streams/{whole.headers['x-stream-id']}", headers={"Range": range_})
    assert (response.status_code, response.content) == (200, whole.content)


@pytest.mark.parametrize("start", ["-1", "x", "1.5", "٣", "9" * 30])
def test_a_start_that_is_no_number_is_refused(server: LiveServer, whole: httpx.Response, start: str) -> None:
    response = server.get(f"/streams/{whole.headers['x-stream-id']}", params={"from": start})
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["query", "from"])


def test_a_stream_expires() -> None:
    with running(speaking(tone(0.1)), resume_keep_s=0.3) as live:
        stream_id = live.post(PCM, {"text": "a"}).headers["x-stream-id"]
        eventually(lambda: not live.service.streams)
        assert live.get(f"/streams/{stream_id}").status_code == 404
        assert live.service.budget.kept_bytes == 0


def test_what_was_not_encoded_when_its_client_left_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one core encodes less than what arrives
    with running(speaking(tone(30.0)), unsent_total_mb=32) as live:
        for _ in range(8):  # 1.4 MB of samples each
            client = RawClient(live.port, OPUS, {"text": "a", "opus_complexity": 10})
            client.read()
            client.close()
        eventually(lambda: sum(stream.held_bytes for stream in live.service._streams.values()) < 4.5 * 2**20)


def test_number_and_memory_are_bounded_and_the_oldest_go_first() -> None:
    with running(speaking(tone(10.0)), unsent_total_mb=8) as live:
        ids = [live.post(PCM, {"text": "a"}).headers["x-stream-id"] for _ in range(5)]
        statuses = [live.get(f"/streams/{stream_id}").status_code for stream_id in ids]
        assert statuses == [404, 404, 404, 200, 200], "two of 480 000 bytes fit into a MiB"
        assert live.service.budget.kept_bytes <= 2**20
    with running(speaking(tone(0.1))) as live:
        ids = [live.post(PCM, {"text": "a"}).headers["x-stream-id"] for _ in range(MAX_KEPT_STREAMS + 2)]
        statuses = [live.get(f"/streams/{stream_id}").status_code for stream_id in ids]
        assert statuses == [404] * 2 + [200] * MAX_KEPT_STREAMS


def test_a_second_reader_may_come_before_the_first_is_known_to_be_gone() -> None:
    with running(speaking(*[tone(1.0)] * 100)) as live:
        stuck = RawClient(live.port, PCM, {"text": "a"}, receive_buffer=4096)
        head = stuck.read(2000)
        stream_id = next(line[13:] for line in head.decode("latin-1").split("\r\n") if line.startswith("x-stream-id"))
        assert live.get(f"/streams/{stream_id}").content == to_int16(tone(1.0)).tobytes() * 100
        stuck.close()


def test_the_queue_is_told_at_every_change() -> None:
    with (
        running(speaking(tone(0.1), FOREVER)) as live,
        live.client.stream("GET", "/opus_queue_status/events") as events,
    ):
        assert events.headers["content-type"].startswith("text/event-stream")
        lines = events.iter_lines()
        idle = {"is_processing": False, "queue_available": True, "timestamp": 0, "waiting": 0, "queue": []}
        assert {**event_of(lines), "timestamp": 0} == idle
        holding = RawClient(live.port, PCM, {"text": "first"})
        busy = event_of(lines)
        assert busy["current_request"]["text_preview"] == "first"
        waiting = RawClient(live.port, PCM, {"text": "second"}, request_id="the-second")
        queued = event_of(lines)
        assert queued["waiting"] == 1
        assert (queued["queue"][0]["request_id"], queued["queue"][0]["position"]) == ("the-second", 1)
        assert queued["queue"][0]["expected_wait_seconds"] >= 0
        holding.close()
        while event_of(lines).get("current_request", {}).get("text_preview") != "second":
            pass
        assert b"x-queue-position: 1" in waiting.read()
        waiting.close()


def event_of(lines: Iterator[str]) -> dict[str, Any]:
    for line in lines:
        if line.startswith("data: "):
            found: dict[str, Any] = json.loads(line[6:])
            return found
    raise AssertionError("the events ended")
