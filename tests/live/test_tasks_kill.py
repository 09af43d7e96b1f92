"""Accepted tasks complete exactly once in spite of kills and full disks."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import wave
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.support.children import end, spawn
from tests.support.postgres import PostgreSQL, files_below
from tests.support.process import ROOT, ServerProcess, server_process
from tests.support.server import eventually

SERVE = (sys.executable, "-m", "streaming_server.cli", "serve", "--engine", "espeak")
SENTENCE = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. "
LENGTHS = (5, 20, 40)
"""Of texts, in sentences of five seconds."""
SAME_S = 0.3
"""Two readings of one text differ by less, as they begin elsewhere in the voice's flutter; a sentence takes five."""
RUNS = os.environ.get("KILL_RUNS", "")
"""Number of kills; by default 5 with SQLite and 2 with PostgreSQL."""


def recording(seconds: float = 1.0) -> bytes:
    """A WAV file of noise; no two are alike."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24000)
        file.writeframes(np.random.default_rng(uuid.uuid4().int).bytes(round(seconds * 24000) * 2))
    return out.getvalue()


@dataclass
class Batch:
    """A client that records the responses of the server."""

    url: str = ""
    uploads: set[str] = field(default_factory=set)
    tasks: dict[str, str] = field(default_factory=dict)
    """By id, the text."""
    deleted: set[str] = field(default_factory=set)
    doubtful: set[str] = field(default_factory=set)
    """Those whose deletion was not answered; the audio of one may stay until it expires."""
    completed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The records of the tasks that were reported as completed."""

    def upload(self, content: bytes) -> str:
        answer = requests.post(f"{self.url}/api/v1/upload/audio", files={"file": ("a.wav", content)}, timeout=120)
        assert answer.status_code == 200, answer.text
        file_id: str = answer.json()["file_id"]
        assert file_id == hashlib.sha256(content).hexdigest()
        self.uploads.add(file_id)
        return file_id

    def submit(self, voice: str, text: str) -> str:
        body = {"text": text, "prompt_audio_id": voice}
        answer = requests.post(f"{self.url}/api/v1/tts", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        task_id: str = answer.json()["task_id"]
        self.tasks[task_id] = text
        return task_id

    def status(self, task_id: str) -> dict[str, Any]:
        answer = requests.get(f"{self.url}/api/v1/task/{task_id}", timeout=120)
        assert answer.status_code == 200, answer.text
        record: dict[str, Any] = answer.json()
        assert record["status"] != "failed", record
        return record

    def delete(self, task_id: str) -> None:
        del self.tasks[task_id]
        self.doubtful.add(task_id)
        if requests.delete(f"{self.url}/api/v1/task/{task_id}", timeout=120).status_code in {200, 404}:
            self.doubtful.remove(task_id)
            self.deleted.add(task_id)

    def audio(self, task_id: str) -> bytes:
        answer = requests.get(f"{self.url}/api/v1/audio/{task_id}", timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.content

    def work(self, chance: random.Random) -> None:
        """Upload, submit and delete until the server is killed."""
        with suppress(requests.ConnectionError):
            for _ in range(3):
                voice = self.upload(recording(chance.uniform(0.2, 3.0)))
                self.submit(voice, SENTENCE * chance.choice(LENGTHS))
                if self.completed and chance.random() < 0.3:
                    self.delete(self.completed.popitem()[0])
            while True:
                self.upload(recording(chance.uniform(0.2, 10.0)))

    def check_what_was_done(self) -> None:
        """Completed tasks stay completed and are not repeated."""
        for task_id, text in self.tasks.items():
            record = self.status(task_id)
            if record["status"] == "completed":
                assert self.completed.setdefault(task_id, record) == record, text


def half_an_upload(port: int) -> socket.socket:
    """One that is still being sent when the server dies."""
    content = recording(5.0)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    connection = socket.create_connection(("127.0.0.1", port), timeout=120)
    length = len(content) + 200
    connection.sendall(
        b"POST /api/v1/upload/audio HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        + f"Content-Length: {length}\r\n\r\n".encode()
        + head
        + content[: len(content) // 2]
    )
    return connection


def under_way(folder: Path) -> bool:
    """Whether files are being received or written."""
    return any(name.startswith("scratch") for name in files_below(folder))


def killed_while_starting(after_s: float, environment: dict[str, str]) -> None:
    command = [*SERVE, "--host", "127.0.0.1", "--port", "0"]
    process = spawn(command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.DEVNULL)
    time.sleep(after_s)
    end(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_at_any_moment(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    runs = int(RUNS or {"sqlite": 5, "postgresql": 2}[kind])
    chance = random.Random(4)
    # So long a lease that only the death itself, and never the time, can give a task back.
    environment = {"DATA_DIR": str(tmp_path), "TASK_LEASE_S": "3600", "HOST": "127.0.0.1"}
    environment["MAX_TASK_ATTEMPTS"] = "1000"  # a long task may be the one that runs at each kill
    if kind == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        environment["DATABASE_URL"] = server.new_database()
    batch = Batch()
    interrupted = 0
    for run in range(runs):
        with server_process(*SERVE, **environment) as live:
            batch.url = live.url
            batch.check_what_was_done()
            half = half_an_upload(live.port)
            working = threading.Thread(target=batch.work, args=(random.Random(run),))
            working.start()
            eventually(lambda: under_way(tmp_path))
            if not run:  # later ones may die before anything is accepted
                eventually(lambda: batch.tasks)
            time.sleep(chance.uniform(0.02, 1.5))
            assert live.stop(signal.SIGKILL) == -signal.SIGKILL
            working.join()
            half.close()
        interrupted += under_way(tmp_path)
        if run % 3 == 2:
            killed_while_starting(chance.uniform(0.3, 2.0), environment)

    with server_process(*SERVE, **environment) as live:
        batch.url = live.url
        eventually(lambda: not unfinished(live.url), within_s=1200)
        batch.check_what_was_done()
        assert len(batch.completed) == len(batch.tasks)
        whole = {length: spoken_s(live, SENTENCE * length) for length in LENGTHS}
        for task_id, text in batch.tasks.items():
            assert seconds(batch.audio(task_id)) == pytest.approx(whole[len(text) // len(SENTENCE)], abs=SAME_S)
        for task_id in batch.deleted:
            assert requests.get(f"{live.url}/api/v1/task/{task_id}", timeout=120).status_code == 404
        for file_id in batch.uploads:
            assert requests.get(f"{live.url}/api/v1/file/{file_id}", timeout=120).status_code == 200
        known = [task["task_id"] for task in listed(live.url)]
        assert live.stop() == -signal.SIGTERM
    left = files_below(tmp_path)
    audio = {Path(name).stem for name in left if name.startswith("audio/")}
    assert set(known) <= audio <= {*known, *batch.doubtful}
    uploads = {name.removeprefix("uploads/") for name in left if name.startswith("uploads/")}
    assert uploads >= batch.uploads
    for name in uploads:
        assert hashlib.sha256((tmp_path / "uploads" / name).read_bytes()).hexdigest() == name
    others = {name for name in left if not name.startswith(("audio/", "uploads/"))}
    assert others <= {"api_server.log"}, "something temporary is left"
    assert interrupted, "the server was never killed in the middle of anything"
    print(f"{kind}: {runs} kills, {interrupted} with files under way; {len(known)} tasks, {len(uploads)} uploads")


def listed(url: str, **query: str) -> list[dict[str, Any]]:
    answer = requests.get(f"{url}/api/v1/tasks", params={"limit": "1000", **query}, timeout=120)
    tasks: list[dict[str, Any]] = answer.json()["tasks"]
    assert len(tasks) == answer.json()["total"]
    return tasks


def unfinished(url: str) -> int:
    return len(listed(url, status="pending")) + len(listed(url, status="processing"))


def spoken_s(live: ServerProcess, text: str) -> float:
    """Return the time of a text without interruptions."""
    body = {"text": text, "prompt_audio_id": "voice_01"}
    return seconds(requests.post(f"{live.url}/api/v1/tts/sync", json=body, timeout=180).content)


def seconds(content: bytes) -> float:
    """Of a WAV file, by its samples; they must be as many as its header says."""
    with wave.open(io.BytesIO(content)) as file:
        samples = file.readframes(2**31 // 8)
        assert len(samples) == file.getnframes() * 2
        assert len(content) == len(samples) + 44
        return float(file.getnframes() / file.getframerate())


def on_small_disk(folder: Path, size: str) -> tuple[str, ...]:
    """Return the command that runs the server with a private file system mounted on a folder."""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    mount = f"mount -t tmpfs -o size={size} none {folder}"
    tried = subprocess.run([*unshare, "sh", "-c", mount], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no small file system can be mounted here: {tried.stderr.strip()}")
    return (*unshare, "sh", "-c", f'{mount} && exec "$@"', "sh", *SERVE)


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with server_process(*on_small_disk(folder, "10m"), DATA_DIR=str(folder), TASK_LEASE_S="2") as live:
        inside = Path(f"/proc/{live.process.pid}/root{folder}")
        batch = Batch(live.url)
        voice = batch.upload(recording())
        done = batch.submit(voice, "Before.")
        eventually(lambda: batch.status(done)["status"] == "completed")
        before = batch.audio(done)

        fill(inside / "filler")
        refused_upload = requests.post(
            f"{live.url}/api/v1/upload/audio", files={"file": ("a.wav", recording())}, timeout=120
        )
        assert_full(refused_upload)
        assert_full(submit_until_refused(batch, voice))
        assert batch.audio(done) == before, "what is there is served on"
        assert batch.status(done)["status"] == "completed"
        assert requests.get(f"{live.url}/api/v1/file/{voice}", timeout=120).status_code == 200
        accepted = [task_id for task_id in batch.tasks if task_id != done]
        time.sleep(1.0)  # some are tried meanwhile
        for task_id in accepted:
            if batch.status(task_id)["status"] != "completed":
                answer = requests.get(f"{live.url}/api/v1/audio/{task_id}", timeout=120)
                assert (answer.status_code, answer.json()["success"]) in {(400, False), (200, True)}
        (inside / "filler").unlink()

        again = recording()
        eventually(lambda: succeeds(lambda: batch.upload(again)))
        last = batch.submit(voice, "After.")
        eventually(lambda: all(batch.status(task_id)["status"] == "completed" for task_id in batch.tasks))
        assert seconds(batch.audio(last)) > 0.3
        for task_id in accepted:
            assert seconds(batch.audio(task_id)) > 0.3
        assert not [name for name in files_below(inside) if name.startswith("scratch")]


@pytest.mark.slow
def test_a_disk_that_fills_while_a_task_is_spoken(tmp_path: Path) -> None:
    """The task restarts when there is space, and its partial output does not fill the disk."""
    folder = tmp_path / "data"
    folder.mkdir()
    with server_process(*on_small_disk(folder, "10m"), DATA_DIR=str(folder), TASK_LEASE_S="2") as live:
        inside = Path(f"/proc/{live.process.pid}/root{folder}")
        batch = Batch(live.url)
        fill(inside / "filler", leaving=2_000_000)
        task_id = batch.submit("voice_01", SENTENCE * 20)  # four megabytes
        eventually(lambda: "no space left" in batch.status(task_id)["message"])
        eventually(lambda: not [name for name in files_below(inside) if name.startswith(("scratch", "audio"))])
        (inside / "filler").unlink()
        eventually(lambda: batch.status(task_id)["status"] == "completed")
        assert seconds(batch.audio(task_id)) == pytest.approx(spoken_s(live, SENTENCE * 20), abs=SAME_S)


def submit_until_refused(batch: Batch, voice: str) -> requests.Response:
    """The journal may have room for a few more."""
    for _ in range(100):
        body = {"text": "Meanwhile.", "prompt_audio_id": voice}
        answer = requests.post(f"{batch.url}/api/v1/tts", json=body, timeout=120)
        if answer.status_code != 200:
            return answer
        batch.tasks[answer.json()["task_id"]] = "Meanwhile."
    raise AssertionError("nothing is refused")


def fill(path: Path, leaving: int = 0) -> None:
    """Take the disk's last byte, but for some."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    if leaving:
        os.truncate(path, path.stat().st_size - leaving)


def assert_full(answer: requests.Response) -> None:
    assert answer.status_code == 507, answer.text
    assert answer.json() == {"success": False, "message": answer.json()["message"]}
    assert "no space left" in answer.json()["message"]


def succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except AssertionError:
        return False
    return True
