"""The server process: no leaks, and an orderly shutdown."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.children import end, spawn
from tests.support.process import ServerProcess, server_process
from tests.support.scripted import SCRIPTED, notes_collected, until
from tests.support.server import RawClient, eventually

PCM = "/synthesize_stream"
SENTENCE = "The quick brown fox jumps over the lazy dog. 今天天气很好。"


def leftovers(server: ServerProcess) -> tuple[int, int, int]:
    """File descriptors, threads, and files in the temporary folder."""
    process = psutil.Process(server.process.pid)
    return process.num_fds(), process.num_threads(), len(list(Path(tempfile.gettempdir()).glob("*.so")))


def break_off(port: int, chance: random.Random) -> None:
    """Connect and leave at a random moment: in the headers, the body, the queue or the audio."""
    path = chance.choice(["/synthesize_stream_opus", "/synthesize_stream", "/synthesize", "/test"])
    content = json.dumps({"text": SENTENCE * chance.randint(1, 40)}).encode()
    request = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode() + content
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(request[: chance.choice([chance.randrange(len(request)), len(request), len(request)])])
        if chance.random() < 0.5:
            # A reset instead of an orderly close.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        time.sleep(chance.choice([0, 0.001, 0.01, 0.05]))
        if chance.random() < 0.3:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.recv(1000)


@pytest.mark.slow
def test_hundreds_of_clients_that_break_off_leave_nothing_behind() -> None:
    chance = random.Random(11)
    with server_process(MAX_QUEUE="8") as server, httpx.Client(base_url=server.url, timeout=120) as client:

        def many(count: int, seed: int) -> None:
            own = random.Random(seed)
            for _ in range(count):
                break_off(server.port, own)

        def settled() -> bool:
            return not client.get("/opus_queue_status").json()["is_processing"]

        many(40, chance.randrange(10**6))
        client.post("/synthesize_stream_opus", json={"text": SENTENCE * 40})
        eventually(settled)
        before = leftovers(server)
        threads = [threading.Thread(target=many, args=(40, chance.randrange(10**6))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(settled)
        eventually(lambda: leftovers(server) <= before)
        answer = client.post("/synthesize_stream_opus", json={"text": "and on"})
        assert answer.status_code == 200
        assert answer.content[-4:] != b""
        assert not [line for line in server.log if '"level": "error"' in line]


def test_a_running_stream_may_end_at_shutdown_and_new_clients_are_refused(tmp_path: Path) -> None:
    with server_process(**SCRIPTED, SHUTDOWN_TIMEOUT_S="3600") as server:
        client = RawClient(server.port, PCM, {"text": until(tmp_path / "end")})
        received = client.read()
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: refused(server.port))
        (tmp_path / "end").touch()
        received += client.read_all()
        assert received.endswith(b"0\r\n\r\n")
        assert server.process.wait(180) in {0, -signal.SIGTERM}


def test_a_stream_that_does_not_end_is_cut_after_the_settings_time(tmp_path: Path) -> None:
    with server_process(**SCRIPTED, SHUTDOWN_TIMEOUT_S="1") as server:
        client = RawClient(server.port, PCM, {"text": until(tmp_path / "never")})
        received = client.read()
        server.stop()
        received += client.read_all()
        assert received.startswith(b"HTTP/1.1 200")
        assert not received.endswith(b"0\r\n\r\n")


def test_a_shutdown_that_exceeds_its_time_is_one_line_of_the_log() -> None:
    with server_process(SHUTDOWN_TIMEOUT_S="1") as server:
        reading = [
            RawClient(server.port, path, {"text": SENTENCE * 300}, receive_buffer=4096)
            for path in ("/synthesize_stream", "/synthesize_stream_opus", "/synthesize_stream")
        ]
        reading[0].read(100)
        server.stop()
        for client in reading:
            client.close()
    records = [json.loads(line) for line in server.log]
    (error,) = [record for record in records if record["level"] == "error"]
    assert "timeout graceful shutdown exceeded" in error["message"]
    assert not [record for record in records if "trace" in record]


def test_who_watches_the_queue_does_not_hold_the_shutdown_up() -> None:
    with (
        server_process(**SCRIPTED, SHUTDOWN_TIMEOUT_S="3600") as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
        client.stream("GET", "/opus_queue_status/events") as events,
    ):
        lines = events.iter_lines()
        assert next(lines).startswith("data: ")
        server.stop()
        assert set(lines) <= {"", ": keep-alive"}


def test_who_waits_when_the_time_is_over_is_told_to_try_again(tmp_path: Path) -> None:
    with server_process(**SCRIPTED, SHUTDOWN_TIMEOUT_S="1") as server:
        holding = RawClient(server.port, PCM, {"text": until(tmp_path / "never")})
        holding.read()
        speech = {"text": "a", "output_path": "a.wav"}
        chain = {"workflow_chain": ["indextts.generate_speech"], "indextts_config": speech}
        accepted = RawClient(server.port, "/v1/workflows", {"workflow_config": chain})
        eventually(lambda: queue_length(server) == 1)
        waiting = [RawClient(server.port, "/synthesize", {"text": "a"}) for _ in range(6)]
        eventually(lambda: queue_length(server) == 7)
        server.process.send_signal(signal.SIGTERM)
        for client in waiting:
            answer = client.read_all()
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after" in answer.lower()
            assert b"shutting down" in answer
        head, _, body = accepted.read_all().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"retry-after" not in head.lower()  # the workflow is stored and runs after the restart
        error = json.loads(body)
        assert error["error_code"] == "MODEL_NOT_READY"
        assert error["workflow_id"].startswith("workflow_")
        assert error["task_id"].startswith("task_")
        holding.close()


def queue_length(server: ServerProcess) -> int:
    with httpx.stream("GET", f"{server.url}/opus_queue_status/events", timeout=120) as events:
        length: int = json.loads(next(events.iter_lines()).removeprefix("data: "))["waiting"]
        return length


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_garbage_collection_does_not_look_at_what_the_engine_has_loaded(tmp_path: Path) -> None:
    with server_process(**SCRIPTED) as server:
        eventually(lambda: any("server ready" in line for line in list(server.log)))
        httpx.post(server.url + PCM, json={"text": notes_collected(tmp_path / "note")}, timeout=120)
        assert (tmp_path / "note").read_text() == "False"


def test_a_port_that_is_taken_is_a_sentence_and_an_exit_status() -> None:
    with (
        server_process() as server,
        pytest.raises(AssertionError, match="the port is in use"),
        server_process(PORT=str(server.port)),
    ):
        pass


def test_the_log_is_one_json_object_a_line() -> None:
    with server_process() as server:
        httpx.post(
            server.url + "/synthesize_stream_opus",
            json={"text": "五个字符的"},
            headers={"X-Request-Id": "r1"},
            timeout=120,
        )
        server.stop()
    records = [json.loads(line) for line in server.log]
    (record,) = [record for record in records if record.get("request_id") == "r1"]
    assert record["message"] == "request"
    wanted = {
        "route",
        "voice",
        "characters",
        "wait_s",
        "first_audio_s",
        "audio_s",
        "real_time_factor",
        "underruns",
        "outcome",
    }
    assert wanted <= set(record)


def test_a_server_that_reloads_begins_again_when_its_code_changes(tmp_path: Path) -> None:
    module = Path(__file__).parents[2] / "streaming_server" / "__init__.py"
    environment = os.environ | {"HOST": "127.0.0.1", "PORT": "0", "DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "streaming_server.cli", "serve", "--reload"]
    with (tmp_path / "log").open("wb") as log:
        process = spawn(command, env=environment, stderr=log, cwd=module.parents[1])
    try:

        def started() -> list[str]:
            return re.findall("Started server process", (tmp_path / "log").read_text())

        eventually(started, within_s=180)
        (url,) = re.findall(r"running on (http://127\.0\.0\.1:\d+)", (tmp_path / "log").read_text())
        eventually(lambda: answers(url), within_s=180)
        module.touch()
        eventually(lambda: len(started()) == 2, within_s=180)
        eventually(lambda: answers(url), within_s=180)
        process.terminate()
        assert process.wait(180) in {0, -signal.SIGTERM}
    finally:
        end(process)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=120).status_code == 200
    except httpx.TransportError:
        return False
