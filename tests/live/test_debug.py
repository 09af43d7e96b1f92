"""Diagnostics of stalled streams."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fakes import FOREVER, Gate, Step, tone
from tests.support.process import server_process
from tests.support.server import LiveServer, RawClient, by_text, eventually, running, speaking

PCM = "/synthesize_stream"


def streams(live: LiveServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = live.get("/debug/streams").raise_for_status().json()["streams"]
    return found


def metrics(live: LiveServer) -> dict[str, float]:
    """By name, and value of the label where there is one."""
    families = text_string_to_metric_families(live.get("/metrics").text)
    return {"".join([s.name, *map(" ".__add__, s.labels.values())]): s.value for f in families for s in f.samples}


def test_each_stream_shows_where_it_is() -> None:
    scripts: dict[str, list[Step]] = {"unread": [tone(1.0)] * 400, "held": [tone(0.5), FOREVER], "queued": [tone(0.1)]}
    with running(by_text(scripts), resume_keep_s=600) as live:
        clients = [RawClient(live.port, PCM, {"text": "unread"}, receive_buffer=4096, request_id="a")]
        # Until all is encoded the kernel's buffers may take what there is.
        eventually(lambda: [(s["state"], s["unencoded_seconds"]) for s in streams(live)] == [("draining", 0)])
        clients.append(RawClient(live.port, PCM, {"text": "held"}, request_id="b"))
        eventually(lambda: len(streams(live)) == 2 and streams(live)[1]["state"] == "synthesising")
        clients.append(RawClient(live.port, "/synthesize_stream_opus", {"text": "queued"}, request_id="c"))
        eventually(lambda: len(streams(live)) == 3)
        unread, held, queued = streams(live)
        assert [stream["request_id"] for stream in (unread, held, queued)] == ["a", "b", "c"]
        assert (unread["state"], held["state"], queued["state"]) == ("draining", "synthesising", "queued")
        assert (unread["characters"], unread["voice"], unread["kind"]) == (6, "voice_01", "live")
        assert unread["audio_seconds"] == 400
        assert unread["unsent_bytes"] > 0
        assert (queued["queue_position"], queued["wait_seconds"], queued["media_type"]) == (1, None, "audio/ogg")
        assert unread["age_seconds"] >= held["age_seconds"] >= queued["age_seconds"]
        assert "unread" not in json.dumps([{**s, "state": ""} for s in (unread, held, queued)])
        read = metrics(live)
        states = {state: read[f"speech_streams {state}"] for state in ("queued", "synthesising", "draining", "kept")}
        assert states == {"queued": 1, "synthesising": 1, "draining": 1, "kept": 0}
        assert read["speech_unsent_bytes"] > 0
        assert read["speech_encoder_waiters"] == 0
        assert read["speech_unencoded_seconds"] >= 0
        assert read["speech_oldest_stream_seconds"] >= unread["age_seconds"]
        clients[0].close()
        eventually(lambda: streams(live)[0]["state"] == "kept")
        for client in clients[1:]:
            client.close()
        eventually(lambda: {stream["state"] for stream in streams(live)} == {"kept"})
        assert metrics(live)["speech_oldest_stream_seconds"] == 0


def test_underruns_are_counted_for_clients_that_play_while_they_receive() -> None:
    gate = Gate()

    async def heard() -> None:
        await gate()

    with running(by_text({"gap": [tone(0.1), heard, tone(0.1)]}), resume_keep_s=600) as live:
        gate.open()
        live.post("/synthesize", {"text": "gap"}).raise_for_status()
        before = metrics(live)
        assert (before["speech_underruns_total"], before["speech_underrun_seconds_total"]) == (0, 0)
        for path in ("/synthesize_stream", "/synthesize_stream_opus"):
            gate = Gate()
            with live.client.stream("POST", path, json={"text": "gap"}, headers={"X-Request-Id": path}) as response:
                pieces = response.iter_raw()
                next(pieces)
                time.sleep(0.5)  # the client plays all that it has
                gate.open()
                list(pieces)
        after = metrics(live)
        counted = {stream["request_id"]: stream["underruns"] for stream in streams(live)}
        assert min(counted.values()) >= 1
        assert after["speech_underruns_total"] == sum(counted.values())
        assert after["speech_underrun_seconds_total"] >= 2 * 0.15


@pytest.mark.parametrize("header", ["Origin", "X-Forwarded-For", "Forwarded"])
def test_without_keys_only_this_machine_sees_the_streams(header: str) -> None:
    with running(speaking(tone(0.1))) as live:
        assert live.get("/debug/streams").json()["streams"] == []
        refused = live.get("/debug/streams", headers={header: "203.0.113.1"})
        assert refused.status_code == 403
        assert "API_KEYS" in refused.json()["detail"]


def test_with_keys_a_key_is_needed_and_enough() -> None:
    with running(speaking(tone(0.1)), api_keys=("secret",)) as live:
        assert live.get("/debug/streams").status_code == 401
        proxied = {"X-API-Key": "secret", "X-Forwarded-For": "203.0.113.1"}
        assert live.get("/debug/streams", headers=proxied).status_code == 200


def test_a_signal_shows_the_stacks_of_all_threads() -> None:
    with server_process() as server:
        server.process.send_signal(signal.SIGUSR1)
        eventually(lambda: any("Current thread" in line for line in list(server.log)))
        eventually(lambda: any("in _run" in line for line in list(server.log)))
        assert httpx.get(server.url + "/health", timeout=120).status_code == 200
