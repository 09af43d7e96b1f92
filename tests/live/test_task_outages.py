"""Accepted tasks survive storage outages and texts that kill the process."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psycopg
import pytest

from streaming_server.domain import SpeechRequest
from streaming_server.errors import EngineFailed, LeaseLost, StorageUnavailable
from streaming_server.jobs import celery_client, file_store, runner, store
from streaming_server.jobs.inspection import VoicePresets
from streaming_server.jobs.threads import StorageThreads
from tests.support.fakes import FakeEngine, tone
from tests.support.postgres import Clock, PostgreSQL, opened_storage
from tests.support.process import ROOT, SERVE, server_process
from tests.support.scripted import SCRIPTED, killed_at
from tests.support.server import RECORDINGS, LiveServer, eventually, running, speaking

SPEECH = "indextts.generate_speech"


def submit(live: LiveServer, text: str = "One.", voice: str = "voice_01") -> str:
    answer = live.post("/api/v1/tts", {"text": text, "prompt_audio_id": voice})
    assert answer.status_code == 200, answer.text
    task_id: str = answer.json()["task_id"]
    return task_id


def task(live: LiveServer, task_id: str) -> dict[str, Any]:
    record: dict[str, Any] = live.get(f"/api/v1/task/{task_id}").json()
    return record


def is_completed(live: LiveServer, task_id: str) -> bool:
    return bool(task(live, task_id)["status"] == "completed")


def workflow(**config: Any) -> dict[str, Any]:
    named = {"text": "Hello.", "output_path": "/share/a.wav"} | config
    return {"workflow_config": {"workflow_chain": [SPEECH], "indextts_config": named}}


def upload(live: LiveServer) -> str:
    with (RECORDINGS / "voice_02.wav").open("rb") as file:
        answer = live.client.post("/api/v1/upload/audio", files={"file": file})
    file_id: str = answer.json()["file_id"]
    return file_id


class Pause:
    """Stops whoever calls a method until the test lets the call go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self._begun, self._go_on = threading.Semaphore(0), threading.Event()
        method = getattr(owner, name)

        def paused(*arguments: Any) -> Any:
            self._begun.release()
            assert self._go_on.wait(180)
            return method(*arguments)

        monkeypatch.setattr(owner, name, paused)

    def wait_for(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._begun.acquire(timeout=180)

    def go_on(self) -> None:
        self._go_on.set()


@contextmanager
def a_file_in_its_place(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_bytes(b"")
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


@pytest.mark.parametrize("name", ["audio", "scratch"])
def test_a_folder_that_became_a_file_loses_no_task(name: str, tmp_path: Path) -> None:
    with running(FakeEngine(), data_dir=tmp_path) as live:
        with a_file_in_its_place(tmp_path / name):
            task_id = submit(live)
            record: dict[str, Any] = {}

            def is_waiting() -> bool:
                record.update(task(live, task_id))
                return "waiting for storage" in record["message"]

            eventually(is_waiting)
            assert record["status"] == "pending"
            assert any(reason in record["message"] for reason in ("Not a directory", "File exists"))
        eventually(lambda: is_completed(live, task_id))
        assert live.get(f"/api/v1/audio/{task_id}").content[:4] == b"RIFF"


def test_an_upload_without_a_folder_to_write_to_is_a_503_in_every_dialect(tmp_path: Path) -> None:
    with running(FakeEngine(), data_dir=tmp_path) as live, a_file_in_its_place(tmp_path / "scratch"):
        routes = {
            "/api/v1/upload/audio": "file",
            "/v1/audio/voices": "audio_sample",
            "/generate-upload": "ref_audio_file",
        }
        for path, field in routes.items():
            form = {"name": "a", "consent": "b", "text": "c"}
            answer = live.client.post(path, data=form, files={field: ("a.wav", b"RIFF")})
            assert (answer.status_code, "cannot be used" in answer.text) == (503, True), path


def test_a_scratch_folder_that_is_gone_is_made_again(tmp_path: Path) -> None:
    with running(FakeEngine(), data_dir=tmp_path) as live:
        for path in sorted((tmp_path / "scratch").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "scratch").rmdir()
        task_id = submit(live)
        eventually(lambda: is_completed(live, task_id))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.EPERM, errno.ENOSPC])
def test_whatever_the_system_says_no_task_is_lost_and_it_is_no_attempt(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()
    broken.set()
    complete = runner._complete

    def failing(*arguments: Any) -> None:
        if broken.is_set():
            raise OSError(number, os.strerror(number))
        complete(*arguments)

    monkeypatch.setattr(runner, "_complete", failing)
    with running(FakeEngine(), max_task_attempts=1) as live:
        task_id = submit(live)
        eventually(lambda: "waiting for storage" in task(live, task_id)["message"])
        eventually(lambda: len(live.engine.requests) >= 2)
        broken.clear()
        eventually(lambda: is_completed(live, task_id))


def test_a_workflow_whose_root_is_full_fails_and_holds_up_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.is_relative_to(tmp_path / "root"):
            raise OSError(errno.ENOSPC, "")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    settings: dict[str, Any] = {"workflow_root": str(tmp_path / "root"), "data_dir": tmp_path / "data"}
    with running(FakeEngine(), **settings) as live:
        accepted = live.post("/v1/workflows?wait=false", workflow()).json()
        path = f"/v1/workflows/status/{accepted['workflow_id']}"
        stage: dict[str, Any] = {}

        def is_waiting() -> bool:
            stage.update(live.get(path).json()["stages"][0])
            return "message" in stage["output"]

        eventually(is_waiting)
        assert stage["status"] == "pending"
        assert "no space left" in stage["output"]["message"]
        behind = submit(live)
        eventually(lambda: is_completed(live, behind))
        assert live.get(path).json()["status"] != "completed"
    with running(FakeEngine(), **settings, storage_wait_s=0.001) as live:
        eventually(lambda: live.get(path).json()["status"] == "failed")
        assert live.get(path).json()["stages"][0]["output"]["error_code"] == "INSUFFICIENT_STORAGE"
        answer = live.post("/v1/workflows", workflow())
        assert (answer.status_code, answer.json()["error_code"]) == (507, "INSUFFICIENT_STORAGE")
        assert answer.json()["task_id"].startswith("task_")


def test_no_other_process_takes_a_job_whose_process_works_before_or_after_the_synthesis(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decodes voices, fetches a recording, or delivers the result."""
    lease_s = 60.0
    monkeypatch.setattr(runner, "_REPORT_S", 0.01)
    body = workflow(reference_audio="/share/v.wav")
    body["workflow_config"]["workflow_chain"] = ["indextts.list_voice_presets", SPEECH]

    def rows(column: str) -> list[Any]:
        with sqlite3.connect(tmp_path / "server.db") as database:
            return [value for (value,) in database.execute(f"SELECT {column} FROM jobs ORDER BY number")]

    with (
        running(FakeEngine(), data_dir=tmp_path, task_lease_s=lease_s) as live,
        opened_storage(tmp_path, "", lease_s=lease_s) as other,
    ):

        def is_renewed(until_s: float) -> bool:
            return any(value and value > until_s + lease_s / 2 for value in rows("lease_until_s"))

        def takes_longer_than_the_lease(pause: Pause) -> None:
            pause.wait_for()
            for _ in range(2):
                (until_s,) = filter(None, rows("lease_until_s"))
                clock.advance(0.9 * lease_s)
                eventually(partial(is_renewed, until_s))
            assert other.jobs.claim("other") is None

        (tmp_path / "workflows").mkdir()
        shutil.copy(RECORDINGS / "voice_02.wav", tmp_path / "workflows" / "v.wav")
        decoding = Pause(monkeypatch, VoicePresets, "list")
        path = f"/v1/workflows/status/{live.post('/v1/workflows?wait=false', body).json()['workflow_id']}"
        takes_longer_than_the_lease(decoding)
        fetching = Pause(monkeypatch, file_store.FolderFiles, "local")
        decoding.go_on()
        takes_longer_than_the_lease(fetching)
        delivering = Pause(monkeypatch, file_store.FolderFiles, "staged")
        fetching.go_on()
        takes_longer_than_the_lease(delivering)
        delivering.go_on()
        eventually(lambda: live.get(path).json()["status"] == "completed")
        assert rows("attempts") == [1, 1]


class Speechless(FakeEngine):
    def refusal(self, request: SpeechRequest) -> str:
        return "has no words"


def test_a_broker_that_does_not_answer_keeps_no_client_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_client, "_COMMAND_S", 3600)
    with socket.create_server(("127.0.0.1", 0)) as broker:
        url = f"redis://127.0.0.1:{broker.getsockname()[1]}/0"
        with running(Speechless(), data_dir=tmp_path, celery_broker_url=url) as live, broker:
            tasks = [submit(live) for _ in range(10)]  # a worker's engine may speak what the server's cannot
            assert {task(live, task_id)["status"] for task_id in tasks} == {"pending"}
            refused = live.post("/api/v1/tts/sync", {"text": "One.", "prompt_audio_id": "voice_01"})
            assert refused.status_code == 400
            assert "text has no words" in refused.text


def test_slow_transfers_keep_no_request_from_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(FakeEngine()) as live:
        task_id = submit(live)
        eventually(lambda: is_completed(live, task_id))
        fetching = Pause(monkeypatch, file_store.FolderFiles, "local")
        statuses: list[int] = []
        readers = [
            threading.Thread(target=lambda: statuses.append(live.get(f"/api/v1/audio/{task_id}").status_code))
            for _ in range(8)
        ]
        for reader in readers:
            reader.start()
        fetching.wait_for(len(readers))
        assert is_completed(live, task_id)
        fetching.go_on()
        for reader in readers:
            reader.join()
        assert statuses == [200] * len(readers)


def test_a_copy_to_another_file_system_locks_no_database_and_a_retry_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_STORAGE_PAUSES_S", (0.0, 0.0))
    copied = file_store._copied
    copies: list[Path] = []

    def copying(source: Path, target: Path) -> Path:
        with sqlite3.connect(tmp_path / "server.db", isolation_level=None) as database:
            database.execute("BEGIN IMMEDIATE")  # waits, and fails in the end, where the copy holds the lock
            database.execute("ROLLBACK")
        copies.append(target)
        if len(copies) == 1:
            target.write_bytes(b"half")
            raise OSError(errno.EIO, "as after the death of a process, the incomplete copy stays")
        return copied(source, target)

    monkeypatch.setattr(file_store, "_copied", copying)
    with (
        TemporaryDirectory(dir="/dev/shm") as root,
        running(FakeEngine(), data_dir=tmp_path, workflow_root=root) as live,
    ):
        if tmp_path.stat().st_dev == Path(root).stat().st_dev:
            pytest.skip("/dev/shm is no file system of its own here")
        assert live.post("/v1/workflows", workflow()).status_code == 200
        assert [path.name for path in Path(root).iterdir()] == ["a.wav"]
    assert len(copies) == 2


def test_an_engine_that_fails_is_asked_again_and_then_no_more() -> None:
    failures = [EngineFailed(), EngineFailed()]
    engine = FakeEngine(lambda _: [failures.pop()] if failures else [tone(0.2)])
    with running(engine) as live:
        task_id = submit(live)
        eventually(lambda: is_completed(live, task_id))
        assert len(engine.requests) == 3
    with running(speaking(EngineFailed()), max_task_attempts=2) as live:
        task_id = submit(live)
        eventually(lambda: task(live, task_id)["status"] == "failed")
        assert "attempt 2 of 2" in task(live, task_id)["message"]
        assert len(live.engine.requests) == 2


@pytest.mark.slow
def test_a_text_that_kills_the_process_is_tried_as_often_as_the_setting_says(tmp_path: Path) -> None:
    environment = {"DATA_DIR": str(tmp_path), "HOST": "127.0.0.1", "PORT": "0", "TASK_LEASE_S": "3600"}
    environment["MAX_TASK_ATTEMPTS"] = "3"
    gate = tmp_path / "gate"
    with server_process(**SCRIPTED | environment) as first:
        bodies = [{"text": text, "prompt_audio_id": "voice_01"} for text in (killed_at(gate), "Next.")]
        deadly, after = (
            httpx.post(f"{first.url}/api/v1/tts", json=body, timeout=120).json()["task_id"] for body in bodies
        )
        gate.touch()
        assert first.process.wait(180) == -9
    for _ in range(2):
        again = subprocess.run(SERVE, cwd=ROOT, env=os.environ | SCRIPTED | environment, timeout=600, check=False)
        assert again.returncode == -9
    with server_process(**SCRIPTED | environment) as last:

        def record(task_id: str) -> dict[str, Any]:
            found: dict[str, Any] = httpx.get(f"{last.url}/api/v1/task/{task_id}", timeout=120).json()
            return found

        eventually(lambda: record(after)["status"] == "completed")
        assert record(deadly)["status"] == "failed"
        assert record(deadly)["message"] == "the process that ran it died (attempt 3 of 3)"


def test_a_locked_sqlite_is_a_503_and_live_speech_goes_on(tmp_path: Path) -> None:
    with running(FakeEngine(), data_dir=tmp_path) as live:
        voice = upload(live)
        holder = sqlite3.connect(tmp_path / "server.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        refused = live.post("/api/v1/tts", {"text": "a", "prompt_audio_id": "voice_01"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["success"] is False
        refused = live.post("/v1/workflows", workflow())
        assert (refused.status_code, refused.json()["error_code"]) == (503, "QUEUE_FULL")
        assert int(refused.headers["retry-after"]) >= 1
        spoken = live.post("/tts_url", {"text": "a", "audio_paths": [voice]})
        assert spoken.status_code == 200
        holder.execute("ROLLBACK")
        holder.close()
        task_id = submit(live)
        eventually(lambda: is_completed(live, task_id))


def test_a_locked_postgresql_is_a_503_for_many_and_live_speech_goes_on(postgresql: PostgreSQL, tmp_path: Path) -> None:
    url = postgresql.new_database()
    with running(FakeEngine(), data_dir=tmp_path, database_url=url) as live:
        voice = upload(live)
        answers: list[httpx.Response] = []
        with psycopg.connect(url) as holder:
            holder.execute("LOCK TABLE jobs, uploads, job_uploads IN ACCESS EXCLUSIVE MODE")
            asking = [
                threading.Thread(target=lambda: answers.append(live.get("/api/v1/tasks", timeout=180)))
                for _ in range(20)  # more than there are threads for the database
            ]
            for thread in asking:
                thread.start()
            metrics = live.get("/metrics")
            assert (metrics.status_code, "speech_jobs{" in metrics.text) == (200, False)
            assert "speech_queue_length{" in metrics.text
            assert live.post("/tts_url", {"text": "a", "audio_paths": [voice]}).status_code == 200
            for thread in asking:
                thread.join()
        assert {answer.status_code for answer in answers} == {503}
        assert all("retry-after" in answer.headers for answer in answers)
        eventually(lambda: live.get("/api/v1/tasks").status_code == 200)
        assert 'speech_jobs{state="pending"} 0.0' in live.get("/metrics").text


@pytest.mark.anyio
async def test_a_call_that_no_thread_takes_is_refused() -> None:
    threads = StorageThreads(1, start_timeout_s=600)
    begun, gate = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        gate.wait()

    held = asyncio.create_task(threads.run(hold))
    await asyncio.to_thread(begun.wait)
    threads._start_timeout_s = 0.01
    with pytest.raises(StorageUnavailable):
        await threads.run(lambda: None)
    threads._start_timeout_s = 600
    gate.set()
    await held
    assert await threads.run(lambda: "after") == "after"
    threads.close()


@pytest.mark.anyio
async def test_a_lost_lease_is_never_an_unretrieved_exception() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    threads = StorageThreads(1)
    begun, gate = threading.Event(), threading.Event()

    def lose() -> None:
        begun.set()
        gate.wait()
        raise LeaseLost("a")

    task = asyncio.create_task(threads.run_to_end(lose))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with suppress(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    await asyncio.sleep(0)
    assert told == []
    threads.close()


def test_a_job_deleted_elsewhere_while_it_runs_leaves_no_trace_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    async def wait() -> None:
        while not gate.is_set():
            await asyncio.sleep(0.005)

    with running(speaking(tone(0.1), wait), data_dir=tmp_path) as live, caplog.at_level(logging.INFO):
        task_id = submit(live)
        eventually(lambda: task(live, task_id)["status"] == "processing")
        with sqlite3.connect(tmp_path / "server.db", timeout=10) as database:
            database.execute("DELETE FROM jobs")
        eventually(lambda: "lease lost" in caplog.text)
        gate.set()
    gc.collect()
    assert "never retrieved" not in caplog.text
    assert "Traceback" not in caplog.text
