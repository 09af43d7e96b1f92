"""The file store: a file is complete or does not exist."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from streaming_server.errors import FileMissing, StorageFull, StorageUnavailable
from streaming_server.jobs.file_store import FolderFiles, storage_errors
from tests.support.server import eventually
from tests.support.stored import put


@pytest.fixture
def files(tmp_path: Path) -> FolderFiles:
    return FolderFiles({"audio": tmp_path / "audio", "far": Path("/dev/shm") / tmp_path.name})


def source(tmp_path: Path, content: bytes = b"new") -> Path:
    path = tmp_path / "source"
    path.write_bytes(content)
    return path


def test_put_read_delete(files: FolderFiles, tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"^the file a\.wav does not exist any more$"):
        files.local("audio/a.wav")
    put(files, "audio/a.wav", source(tmp_path))
    assert files.local("audio/a.wav").read_bytes() == b"new"
    assert not (tmp_path / "source").exists()
    files.delete("audio/a.wav")
    files.delete("audio/a.wav")
    with pytest.raises(FileMissing):
        files.local("audio/a.wav")


def test_a_reader_finds_the_old_content_or_the_new_whole(files: FolderFiles, tmp_path: Path) -> None:
    contents = {bytes([value]) * 3_000_000 for value in (1, 2)}
    for content in contents:
        put(files, "audio/a", source(tmp_path, content))
    found: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            found.append(files.local("audio/a").read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        for content in contents:
            put(files, "audio/a", source(tmp_path, content))
    eventually(lambda: found)
    stop.set()
    reader.join()
    assert set(found) <= contents


def test_to_another_file_system_it_is_whole_too(files: FolderFiles, tmp_path: Path) -> None:
    target = Path("/dev/shm") / tmp_path.name
    try:
        if os.stat(tmp_path).st_dev == os.stat("/dev/shm").st_dev:  # noqa: PTH116
            pytest.skip("/dev/shm is no file system of its own here")
        put(files, "far/a", source(tmp_path, b"far" * 1_000_000))
        assert files.local("far/a").read_bytes() == b"far" * 1_000_000
        assert [path.name for path in target.iterdir()] == ["a"]
    finally:
        for path in target.glob("*"):
            path.unlink()
        target.rmdir()


def test_it_is_on_the_disk_before_it_has_its_name_and_its_name_is_before_anybody_is_told(
    files: FolderFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power cut needs; it can only be watched, since no test here cuts the power."""
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def watched_sync(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")  # noqa: PTH115
        sync(descriptor)

    def watched_replace(path: Path, target: Path) -> Path:
        done.append(f"name {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    put(files, "audio/a.wav", source(tmp_path))
    assert done == ["sync source", "name a.wav", "sync audio"]


def test_old_files_are_listed_by_age(files: FolderFiles, tmp_path: Path) -> None:
    assert files.older_than("audio", 0) == []
    put(files, "audio/old", source(tmp_path))
    put(files, "audio/new", source(tmp_path))
    (tmp_path / "audio" / "folder").mkdir()
    os.utime(tmp_path / "audio" / "old", (time.time() - 100, time.time() - 100))
    assert files.older_than("audio", 50) == ["audio/old"]
    assert files.older_than("audio", 200) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EROFS, StorageUnavailable),
        (errno.EIO, StorageUnavailable),
        (errno.EPERM, StorageUnavailable),
        (errno.EACCES, StorageUnavailable),
        (errno.ENOTDIR, StorageUnavailable),
    ],
)
def test_every_failure_of_the_system_is_an_outage(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind), storage_errors():
        raise OSError(number, os.strerror(number))


def test_a_root_that_became_a_file_is_an_outage_and_not_the_fault_of_the_key(
    files: FolderFiles, tmp_path: Path
) -> None:
    put(files, "audio/a", source(tmp_path))
    (tmp_path / "audio").rename(tmp_path / "away")
    (tmp_path / "audio").write_bytes(b"")
    for use in (files.check, files.local, files.delete):
        with pytest.raises(StorageUnavailable, match="Not a directory"):
            use("audio/a")
    with pytest.raises(StorageUnavailable, match="Not a directory"):
        put(files, "audio/a", source(tmp_path))
    (tmp_path / "audio").unlink()
    (tmp_path / "away").rename(tmp_path / "audio")
    assert files.local("audio/a").is_file()
