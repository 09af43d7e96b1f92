"""Uploads with SQLite and PostgreSQL: complete, stored once, and kept while they are used."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from starlette.requests import ClientDisconnect

from streaming_server.errors import FileMissing, RecordingRefused, UploadNotFound, UploadTooLarge
from streaming_server.jobs.inspection import SPEECH
from streaming_server.jobs.storage import Storage
from streaming_server.jobs.store import NewJob
from streaming_server.jobs.uploads import Upload
from tests.support.postgres import Clock, files_below, opened_storage, together
from tests.support.recordings import made
from tests.support.stored import watch_puts


@pytest.fixture
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("recording") / "a.flac").read_bytes()


@pytest.fixture(autouse=True)
def patient_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Uploads.voice` does not fall back to the file while the database answers slowly."""
    monkeypatch.setattr("streaming_server.jobs.threads._LOOKUP_TIMEOUT_S", 180.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def received(storage: Storage, content: bytes, filename: str = "a.flac") -> tuple[Upload, bool]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    return asyncio.run(storage.uploads.receive(filename, pieces()))


def needing(storage: Storage, upload: Upload) -> str:
    return storage.jobs.submit([NewJob(uuid.uuid4().hex, SPEECH, "", [upload.id])])[0].id


def test_it_is_stored_under_its_hash(folder: Path, database_url: str, content: bytes) -> None:
    with opened_storage(folder, database_url, keep_s=600) as storage:
        upload, is_duplicate = received(storage, content, "声音.flac")
        assert upload.id == hashlib.sha256(content).hexdigest()
        assert (upload.filename, upload.size, upload.format, upload.sample_rate) == (
            *("声音.flac", len(content)),
            *("flac", 24000),
        )
        assert upload.duration_s == pytest.approx(1.0)
        assert upload.expires_s - upload.created_s == pytest.approx(600, abs=0.1)
        assert not is_duplicate
        assert storage.uploads.get(upload.id) == upload
        assert (folder / "uploads" / upload.id).read_bytes() == content
        assert files_below(folder) == [f"uploads/{upload.id}"]
        voice = storage.uploads.voice(upload.id)
        assert voice is not None
        assert (voice.name, voice.index, voice.path.read_bytes()) == (upload.id, None, content)
    assert files_below(folder) == [f"uploads/{upload.id}"]
    with opened_storage(folder, database_url) as storage:
        assert storage.uploads.get(upload.id) == upload


def test_the_same_content_again(folder: Path, database_url: str, content: bytes) -> None:
    with opened_storage(folder, database_url) as storage:
        first, _ = received(storage, content, "first.flac")
        time.sleep(0.05)
        second, is_duplicate = received(storage, content, "second.flac")
        assert is_duplicate
        assert (second.filename, second.created_s) == ("first.flac", first.created_s)
        assert second.expires_s > first.expires_s, "who brought it last may use it for as long as the first"
        assert files_below(folder) == [f"uploads/{first.id}"]


def test_the_same_content_by_many_at_once(folder: Path, database_url: str, content: bytes) -> None:
    with opened_storage(folder, database_url) as storage, opened_storage(folder, database_url) as other:
        answers: list[tuple[Upload, bool]] = []
        together(6, lambda index: answers.append(received([storage, other][index % 2], content, f"{index}.flac")))
        assert sorted(is_duplicate for _, is_duplicate in answers) == [False] + [True] * 5
        assert len({(upload.id, upload.filename) for upload, _ in answers}) == 1
        assert files_below(folder) == [f"uploads/{answers[0][0].id}"]


def test_what_is_refused_leaves_nothing(folder: Path, database_url: str, content: bytes) -> None:
    with opened_storage(folder, database_url, max_bytes=len(content), max_s=0.9) as storage:
        for bad, kind, sentence in (
            (b"", RecordingRefused, "empty"),
            (b"no sound", RecordingRefused, "not a recording in wav, mp3, m4a, flac"),
            (content[: len(content) // 2], RecordingRefused, "damaged|cut off"),
            (content + b"a", UploadTooLarge, f"larger than {len(content) / 2**20:g} MiB"),
            (content, RecordingRefused, "longer than 0.9 s"),
        ):
            with pytest.raises(kind, match=sentence):
                received(storage, bad)
        assert files_below(folder) == []
        assert storage.uploads.get(hashlib.sha256(content).hexdigest()) is None


def test_a_client_that_goes_away_leaves_nothing(folder: Path, database_url: str, content: bytes) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield content[:500]
        assert len(files_below(folder)) == 1
        raise ClientDisconnect

    with opened_storage(folder, database_url) as storage:
        with pytest.raises(ClientDisconnect):
            asyncio.run(storage.uploads.receive("a.flac", broken()))
        assert files_below(folder) == []


def test_it_expires(folder: Path, database_url: str, content: bytes, clock: Clock) -> None:
    with opened_storage(folder, database_url, keep_s=600) as storage:
        upload, _ = received(storage, content)
        storage.tidy()
        assert storage.uploads.get(upload.id) is not None
        clock.advance(601)
        assert storage.uploads.get(upload.id) is None, "to the moment, whenever somebody tidies"
        assert storage.uploads.voice(upload.id) is None
        with pytest.raises(UploadNotFound):
            needing(storage, upload)
        assert storage.uploads.delete_expired() == 1
        assert files_below(folder) == []
        again, is_duplicate = received(storage, content)
        assert (again.id, is_duplicate) == (upload.id, False)


@pytest.mark.parametrize("end", ["finish", "fail", "cancel", "delete"])
def test_one_that_an_unfinished_job_needs_outlives_its_time(
    folder: Path, database_url: str, content: bytes, end: str, clock: Clock
) -> None:
    with opened_storage(folder, database_url, keep_s=600) as storage:
        upload, _ = received(storage, content)
        job_id = needing(storage, upload)
        clock.advance(601)

        def is_there() -> bool:
            storage.tidy()
            found = (storage.uploads.get(upload.id), storage.uploads.voice(upload.id), files_below(folder))
            assert len({bool(one) for one in found}) == 1
            return bool(found[0])

        assert is_there()
        second = needing(storage, upload)
        job = storage.jobs.claim("me")
        assert job is not None
        assert is_there()
        ends: dict[str, Callable[[], object]] = {
            "finish": lambda: storage.jobs.finish(job, ""),
            "fail": lambda: storage.jobs.fail(job, "", ""),
            "cancel": lambda: storage.jobs.cancel(job_id),
            "delete": lambda: storage.jobs.delete(job_id),
        }
        ends[end]()
        assert is_there(), "the second needs it too"
        storage.jobs.cancel(second)
        assert not is_there()


def reaping(storage: Storage, stop: threading.Event) -> threading.Thread:
    """Remove expired uploads repeatedly."""

    def reap() -> None:
        while not stop.wait(0.004):
            storage.uploads.delete_expired()

    thread = threading.Thread(target=reap)
    thread.start()
    return thread


def test_expiry_and_submission_at_once(folder: Path, database_url: str, content: bytes, clock: Clock) -> None:
    """Either the job is rejected or its upload is kept."""
    with opened_storage(folder, database_url, keep_s=600) as storage:
        stop = threading.Event()
        reaper = reaping(storage, stop)
        outcomes = []
        try:
            for turn in range(12):
                upload, _ = received(storage, content)
                expiring = threading.Timer(turn * 0.001, clock.advance, [601])
                if turn:
                    expiring.start()
                if turn == 11:
                    expiring.join()
                try:
                    job_id = needing(storage, upload)
                except UploadNotFound:
                    outcomes.append("refused")
                    continue
                outcomes.append("accepted")
                for _ in range(5):
                    assert storage.files.local(f"uploads/{upload.id}").is_file()
                    time.sleep(0.01)
                storage.jobs.delete(job_id)
        finally:
            stop.set()
            reaper.join()
        assert (outcomes[0], outcomes[-1]) == ("accepted", "refused")


def test_expiry_waits_for_a_submission_that_has_seen_the_upload(
    folder: Path, database_url: str, content: bytes, clock: Clock
) -> None:
    """The upload expires after the check and before the job is stored."""
    with opened_storage(folder, database_url, keep_s=600) as storage:
        upload, _ = received(storage, content)
        reaper = threading.Thread(target=storage.uploads.delete_expired)

        def meanwhile(connection: object, cursor: object, statement: str, *_: object) -> None:
            if statement.startswith("INSERT INTO job_uploads"):
                clock.advance(601)
                reaper.start()
                reaper.join(0.5)

        sa.event.listen(storage.database._engine, "before_cursor_execute", meanwhile)
        needing(storage, upload)
        reaper.join()
        assert storage.uploads.get(upload.id) == upload
        assert storage.files.local(f"uploads/{upload.id}").read_bytes() == content


def test_expiry_waits_for_an_upload_of_the_same_content(
    folder: Path, database_url: str, content: bytes, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_storage(folder, database_url, keep_s=600) as storage:
        first, _ = received(storage, content)
        clock.advance(601)
        reaper = threading.Thread(target=storage.uploads.delete_expired)

        def reap() -> None:
            reaper.start()
            reaper.join(0.2)

        watch_puts(monkeypatch, storage.files, after=reap)
        received(storage, content)
        reaper.join()
        assert storage.files.local(f"uploads/{first.id}").read_bytes() == content


def test_no_record_is_told_before_its_file_is_there(
    folder: Path, database_url: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies between the two leaves a file without a record, never a record without a file."""
    with opened_storage(folder, database_url) as storage:
        found: list[Upload | None] = []
        watch_puts(
            monkeypatch,
            storage.files,
            before=lambda key: found.append(storage.uploads.get(key.removeprefix("uploads/"))),
        )
        received(storage, content)
        assert found == [None]


def test_expiry_and_upload_at_once(folder: Path, database_url: str, content: bytes) -> None:
    """An upload that is reported as stored can be read."""
    with opened_storage(folder, database_url, keep_s=0.05) as storage:
        stop = threading.Event()
        reaper = reaping(storage, stop)
        try:
            for _ in range(20):
                upload, _ = received(storage, content)
                try:
                    storage.files.local(f"uploads/{upload.id}")
                except FileMissing:
                    assert storage.uploads.get(upload.id) is None, "a record without a file"
                time.sleep(0.03)
        finally:
            stop.set()
            reaper.join()


def test_a_file_without_a_record_goes_and_one_that_is_just_being_brought_stays(
    folder: Path, database_url: str, content: bytes
) -> None:
    """The state after a process death between the rename and the commit."""
    with opened_storage(folder, database_url, keep_s=600) as storage:
        (folder / "uploads").mkdir(exist_ok=True)
        orphan = folder / "uploads" / ("0" * 64)
        incomplete = folder / "uploads" / f".{'0' * 64}.{'1' * 16}.part"
        for path in (orphan, incomplete):
            path.write_bytes(b"orphan")
        storage.tidy()
        assert orphan.exists()
        assert incomplete.exists()
        for path in (orphan, incomplete):
            os.utime(path, (0, 0))
        kept, _ = received(storage, content)
        storage.tidy()
        assert files_below(folder) == [f"uploads/{kept.id}"]
        assert storage.uploads.get("0" * 64) is None
