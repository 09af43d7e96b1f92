"""Object storage against an S3 server, also with two machines that share nothing else."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import S3Transfer

from streaming_server.audio.decode import decode_native
from streaming_server.errors import FileMissing, StorageUnavailable
from streaming_server.jobs import s3_store as objects
from streaming_server.jobs.s3_store import ObjectFiles
from tests.support.children import free_port
from tests.support.fakes import Gate, tone
from tests.support.postgres import opened_storage, together
from tests.support.recordings import made as recording
from tests.support.server import RECORDINGS, eventually, running, speaking
from tests.support.stored import put


@pytest.fixture
def files(s3: str, tmp_path: Path) -> ObjectFiles:
    return ObjectFiles(s3, tmp_path / "cache")


def made(folder: Path, content: bytes) -> Path:
    path = folder / "made"
    path.write_bytes(content)
    return path


def test_what_was_put_is_read_elsewhere(files: ObjectFiles, s3: str, tmp_path: Path) -> None:
    source = made(tmp_path, b"content")
    put(files, "audio/a.wav", source)
    other = ObjectFiles(s3, tmp_path / "elsewhere")
    path = other.local("audio/a.wav")
    assert (path.name, path.read_bytes()) == ("a.wav", b"content")
    assert path.is_relative_to(tmp_path / "elsewhere")


def test_it_is_fetched_once_and_a_new_one_anew(
    files: ObjectFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(files, "audio/a.wav", made(tmp_path, b"old"))
    old = files.local("audio/a.wav")
    with monkeypatch.context() as patch:
        patch.setattr(files._client, "get_object", lambda **_: pytest.fail("fetched twice"))
        assert files.local("audio/a.wav") == old
    with old.open("rb") as reading:
        put(files, "audio/a.wav", made(tmp_path, b"new"))
        assert files.local("audio/a.wav").read_bytes() == b"new"
        assert reading.read() == b"old"


def test_one_replaced_between_the_look_and_the_fetch_is_what_it_is(
    files: ObjectFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(files, "audio/a.wav", made(tmp_path, b"old"))
    old = files._client.head_object(Bucket="shared", Key=f"{files._prefix}audio/a.wav")
    put(files, "audio/a.wav", made(tmp_path, b"new"))
    with monkeypatch.context() as patch:
        patch.setattr(files._client, "head_object", lambda **_: old)
        assert files.local("audio/a.wav").read_bytes() == b"new"
    assert files.local("audio/a.wav").parent.name != old["ETag"].strip('"')


def test_what_is_gone_is_missing(files: ObjectFiles, tmp_path: Path) -> None:
    put(files, "audio/a.wav", made(tmp_path, b"content"))
    files.delete("audio/a.wav")
    files.delete("audio/a.wav")
    with pytest.raises(FileMissing, match=r"a\.wav"):
        files.local("audio/a.wav")


def test_what_is_old_is_told_by_its_key(files: ObjectFiles, tmp_path: Path) -> None:
    for key in ("audio/a.wav", "audio/b.wav", "uploads/c", "workflows/audio/d.wav", "audio/below/e.wav"):
        put(files, key, made(tmp_path, b"content"))
    assert files.older_than("audio", 3600) == []
    time.sleep(1.1)  # the store tells whole seconds
    assert sorted(files.older_than("audio", 0)) == ["audio/a.wav", "audio/b.wav"]


def test_many_readers_at_once_see_a_whole_file(files: ObjectFiles, s3: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    put(files, "audio/a.wav", made(tmp_path, content))
    same_machine = [ObjectFiles(s3, tmp_path / "cache") for _ in range(2)]

    def read(index: int) -> None:
        for _ in range(5):
            assert same_machine[index % 2].local("audio/a.wav").read_bytes() == content

    together(6, read)
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["a.wav"]


def test_copies_that_have_not_been_read_for_long_are_removed(files: ObjectFiles, tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(files, f"audio/{name}.wav", made(tmp_path, name.encode()))
        files.local(f"audio/{name}.wav")
    files.tidy()
    copies = list((tmp_path / "cache").rglob("*.wav"))
    assert len(copies) == 2
    for copy in copies:
        os.utime(copy, (0, 0))
    kept = files.local("audio/a.wav")
    files.tidy()
    assert list((tmp_path / "cache").rglob("*.wav")) == [kept]
    assert files.local("audio/b.wav").read_bytes() == b"b"


def test_a_store_that_is_away_is_no_missing_file(
    files: ObjectFiles, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageUnavailable, match="FILES_URL=s3://no-such-bucket"):
        ObjectFiles("s3://no-such-bucket/a", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(files, "_client", boto3.client("s3", config=objects._CONFIG))
    for work in (
        lambda: files.local("audio/a.wav"),
        lambda: put(files, "audio/a.wav", made(tmp_path, b"content")),
        lambda: files.delete("audio/a.wav"),
        lambda: files.older_than("audio", 0),
    ):
        with pytest.raises(StorageUnavailable):
            work()
    with pytest.raises(StorageUnavailable, match="FILES_URL"):
        ObjectFiles(s3, tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(StorageUnavailable, match="FILES_URL=s3://a cannot be used: Invalid endpoint: localhost:9000"):
        ObjectFiles("s3://a", tmp_path)


def test_content_that_is_not_put_into_place_is_removed(files: ObjectFiles, tmp_path: Path) -> None:
    with files.staged("audio/a.wav", made(tmp_path, b"content")):
        assert len(files.older_than("staged", -60)) == 1
        with pytest.raises(FileMissing):
            files.local("audio/a.wav")
    assert files.older_than("staged", -60) == []


def test_content_that_a_dead_process_staged_is_removed(
    files: ObjectFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files.staged("audio/a.wav", made(tmp_path, b"content")) as place:
        files.tidy()
        assert len(files.older_than("staged", -60)) == 1
        place()
        monkeypatch.setattr(objects, "_STAGED_S", -60)
        files.tidy()
        assert files.older_than("staged", -60) == []
    assert files.local("audio/a.wav").read_bytes() == b"content"


def test_no_transfer_holds_the_lock_of_sqlite(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads and the audio of tasks are brought to the store before the transaction, expired ones removed after it."""
    is_free: list[bool] = []
    upload_file = S3Transfer.upload_file

    def watched(*arguments: Any, **options: Any) -> None:
        with sqlite3.connect(tmp_path / "server.db", isolation_level=None) as database:
            database.execute("BEGIN IMMEDIATE")  # waits, and fails in the end, where the transfer holds the lock
            database.execute("ROLLBACK")
        is_free.append(True)
        upload_file(*arguments, **options)

    monkeypatch.setattr(S3Transfer, "upload_file", watched)
    with running(speaking(tone(0.1)), data_dir=tmp_path, files_url=s3) as live:
        content = recording(tmp_path / "a.flac").read_bytes()
        upload = live.client.post("/api/v1/upload/audio", files={"file": ("a.flac", content)}).json()["file_id"]
        task = live.post("/api/v1/tts", {"text": "Hello.", "prompt_audio_id": upload}).json()["task_id"]
        eventually(lambda: live.get(f"/api/v1/task/{task}").json()["status"] == "completed")
    assert is_free == [True, True]


def test_expired_uploads_are_removed_after_their_records(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[int] = []
    with opened_storage(tmp_path, "", files_url=s3, keep_s=0.01) as storage:
        delete = storage.files.delete

        def watched(key: str) -> None:
            with sqlite3.connect(tmp_path / "server.db") as database:
                recorded.extend(*database.execute("SELECT COUNT(*) FROM uploads"))
            delete(key)

        async def pieces(content: bytes) -> AsyncIterator[bytes]:
            yield content

        monkeypatch.setattr(storage.files, "delete", watched)
        contents = [recording(tmp_path / name).read_bytes() for name in ("a.flac", "a.wav")]
        stored = [asyncio.run(storage.uploads.receive("a", pieces(content)))[0] for content in contents]
        eventually(lambda: not any(storage.uploads.get(upload.id) for upload in stored))
        assert storage.uploads.delete_expired() == 2
        assert recorded == [0, 0]
        assert storage.files.older_than("uploads", -60) == []


def test_the_recording_of_a_task_that_waits_for_long_is_not_removed(s3: str, tmp_path: Path) -> None:
    done = Gate()
    with running(speaking(done, tone(0.1)), data_dir=tmp_path, files_url=s3) as live:
        content = recording(tmp_path / "a.flac").read_bytes()
        upload = live.client.post("/api/v1/upload/audio", files={"file": ("a.flac", content)}).json()["file_id"]
        task = live.post("/api/v1/tts", {"text": "Hello.", "prompt_audio_id": upload}).json()["task_id"]
        eventually(lambda: live.engine.requests)
        copy = live.engine.requests[0].voice.path
        os.utime(copy, (0, 0))
        eventually(lambda: copy.stat().st_mtime > 0)
        ObjectFiles(s3, tmp_path / "cache").tidy()
        assert copy.read_bytes() == content
        done.open()
        eventually(lambda: live.get(f"/api/v1/task/{task}").json()["status"] == "completed")


def test_servers_that_share_only_the_store_and_the_database(s3: str, tmp_path: Path, database_url: str) -> None:
    """Uploads, audio and workflow files of one machine are available on another."""
    common: dict[str, Any] = {"files_url": s3, "database_url": database_url}
    engine = speaking(tone(0.3))
    content = (RECORDINGS / "voice_06.wav").read_bytes()
    with (
        running(engine, data_dir=tmp_path / "a", **common) as one,
        running(speaking(tone(0.3)), data_dir=tmp_path / "b", **common) as other,
    ):
        upload = one.client.post("/api/v1/upload/audio", files={"file": ("v.wav", content)}).json()["file_id"]
        assert other.get(f"/api/v1/file/{upload}").json()["size"] == len(content)
        task = other.post("/api/v1/tts", {"text": "Hello.", "prompt_audio_id": upload}).json()["task_id"]
        eventually(lambda: one.get(f"/api/v1/task/{task}").json()["status"] == "completed")
        for server in (one, other):
            audio = server.get(f"/api/v1/audio/{task}").content
            assert audio[:4] == b"RIFF"
        config = {"text": "Hello.", "output_path": "/share/out/a.wav", "reference_audio": upload}
        workflow = {"workflow_chain": ["indextts.generate_speech"], "indextts_config": config}
        assert one.post("/v1/workflows", {"workflow_config": workflow}).status_code == 200
        config["reference_audio"] = "/share/out/a.wav"  # what it has just made
        assert other.post("/v1/workflows", {"workflow_config": workflow}).status_code == 200
        config["reference_audio"] = "/share/out/none.wav"
        assert other.post("/v1/workflows", {"workflow_config": workflow}).status_code == 404
        spoken = [*one.engine.requests, *other.engine.requests]
        assert content in [request.voice.path.read_bytes() for request in spoken]
        assert other.client.delete(f"/api/v1/task/{task}").status_code == 200
        assert one.get(f"/api/v1/audio/{task}").status_code == 404
    keys = [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket="shared")["Contents"]]
    assert f"{s3.removeprefix('s3://shared/')}/workflows/out/a.wav" in keys
    made_here = ObjectFiles(s3, tmp_path / "third").local("workflows/out/a.wav")
    assert decode_native(made_here)[0].size == round(0.3 * 24000)
