"""Unfinished files, and their cleanup after the death of a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streaming_server.errors import StorageUnavailable
from streaming_server.jobs.inspection import SPEECH
from streaming_server.jobs.scratch import Scratch
from streaming_server.jobs.store import NewJob
from tests.support.children import spawn
from tests.support.postgres import files_below, opened_storage, together

CHILD = """
import sys, time
from pathlib import Path
from streaming_server.jobs.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]))
scratch.new().write_bytes(b"half")
print(scratch.owner, flush=True)
time.sleep(600)
"""


def child(folder: Path) -> tuple[subprocess.Popen[str], str]:
    process = spawn([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_process_that_is_killed_is_known_to_be_gone_at_once(tmp_path: Path) -> None:
    mine = Scratch(tmp_path)
    mine.new().write_bytes(b"mine")
    process, owner = child(tmp_path)
    with process:
        assert mine.dead() == []
        process.send_signal(signal.SIGSTOP)
        assert mine.dead() == [], "it lives, however long it says nothing"
        process.kill()
        process.wait()
    assert mine.dead() == [owner]
    assert mine.dead() == [owner], "until it is swept"
    mine.sweep(owner)
    assert mine.dead() == []
    assert len(files_below(tmp_path)) == 1
    mine.close()
    assert files_below(tmp_path) == []


def test_who_begins_and_ends_at_once_is_never_taken_for_dead(tmp_path: Path) -> None:
    watcher = Scratch(tmp_path)

    def live(index: int) -> None:
        for _ in range(20):
            if index == 0:
                assert watcher.dead() == []
                continue
            scratch = Scratch(tmp_path)
            scratch.new().write_bytes(b"a")
            scratch.close()

    together(4, live)
    watcher.close()


def test_names_are_never_given_twice(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    assert len({scratch.new() for _ in range(1000)}) == 1000
    other = Scratch(tmp_path)
    assert other.owner != scratch.owner
    other.close()
    scratch.close()


def test_the_jobs_of_the_dead_are_given_back_before_their_lease_is_over(tmp_path: Path, database_url: str) -> None:
    process, owner = child(tmp_path / "scratch")
    with process, opened_storage(tmp_path, database_url, lease_s=3600) as storage:
        job = storage.jobs.submit([NewJob("a" * 32, SPEECH, "")])[0]
        assert storage.jobs.claim(owner) is not None
        storage.tidy()
        assert storage.jobs.claim("me") is None
        process.kill()
        process.wait()
        storage.tidy()
        mine = storage.jobs.claim("me")
        assert mine is not None
        assert (mine.id, mine.attempts) == (job.id, 2)
        assert files_below(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageUnavailable, match=r"^DATA_DIR=.*/file cannot be written: Not a directory$"),
        opened_storage(tmp_path / "file", ""),
    ):
        pass
