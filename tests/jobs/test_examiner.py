"""Recordings of clients are decoded in a child process: what they do there costs the server nothing."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from streaming_server.audio.decode import decode_native
from streaming_server.errors import RecordingRefused, StorageUnavailable
from streaming_server.jobs.examiner import Examiner
from tests.support.recordings import made, with_index
from tests.support.server import eventually

LONGEST_S = 20.0
MANY = 30_000_000
"""Samples whose index takes a gigabyte."""


@pytest.fixture(scope="module")
def examiner() -> Iterator[Examiner]:
    examiner = Examiner()
    yield examiner
    examiner.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("good") / "a.m4a")


def process_of(examiner: Examiner) -> psutil.Process:
    assert examiner._child is not None
    return psutil.Process(examiner._child._process.pid)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def crafted(good: Path, path: Path, samples: int, kind: bytes) -> Path:
    path.write_bytes(good.read_bytes())
    return with_index(path, samples, kind)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "webm", "ogg"])
def test_other_formats(examiner: Examiner, suffix: str, tmp_path: Path) -> None:
    codec = ["-c:a", "libopus"] if suffix in {"webm", "ogg"} else []
    path = made(tmp_path / f"a.{suffix}", *codec, rate_hz=48000)
    assert examiner.examine(path, LONGEST_S).format == suffix
    with pytest.raises(RecordingRefused, match=r"longer than 0\.5 s"):
        examiner.examine(path, 0.5)


def test_a_large_cover_picture_is_not_decoded(examiner: Examiner, tmp_path: Path) -> None:
    picture = made(tmp_path / "cover.png", "-frames:v", "1", source="color=red:s=4000x4000", rate_hz=1)
    options = ["-i", str(picture), "-map", "0:a", "-map", "1:v", "-c:v", "png", "-disposition:v", "attached_pic"]
    path = made(tmp_path / "a.mp3", *options)
    assert examiner.examine(path, LONGEST_S).format == "mp3"
    before = peak_bytes()
    decode_native(path)
    assert peak_bytes() - before < 20e6


def test_a_closed_examiner_leaves_no_process(good: Path) -> None:
    examiner = Examiner()
    examiner.examine(good, LONGEST_S)
    process = process_of(examiner)
    examiner.close()
    assert not process.is_running()


def test_why_the_process_does_not_start_is_logged(
    good: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streaming_server.jobs.examiner._COMMAND", ("-c", "import no_such_library"))
    with pytest.raises(StorageUnavailable, match="does not start"):
        Examiner().examine(good, LONGEST_S)
    assert "No module named 'no_such_library'" in caplog.text


def test_a_small_track_of_text_is_no_harm(examiner: Examiner, good: Path, tmp_path: Path) -> None:
    assert examiner.examine(crafted(good, tmp_path / "a.m4a", 1000, b"text"), LONGEST_S).format == "m4a"


@pytest.mark.parametrize("kind", [b"soun", b"text"], ids=["two-tracks-of-sound", "sound-and-text"])
def test_an_index_of_a_gigabyte_in_a_small_file(examiner: Examiner, good: Path, tmp_path: Path, kind: bytes) -> None:
    path = crafted(good, tmp_path / "a.m4a", MANY, kind)
    assert path.stat().st_size < 20_000
    before = peak_bytes()
    with pytest.raises(RecordingRefused, match="limits on memory and time"):
        examiner.examine(path, LONGEST_S)
    assert peak_bytes() - before < 50e6
    assert examiner.examine(good, LONGEST_S).format == "m4a"


def test_several_at_once(examiner: Examiner, good: Path, tmp_path: Path) -> None:
    bad = crafted(good, tmp_path / "a.m4a", MANY, b"soun")

    def outcome(path: Path) -> str:
        try:
            return examiner.examine(path, LONGEST_S).format
        except RecordingRefused:
            return "refused"

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(outcome, [good, bad] * 4)) == ["m4a", "refused"] * 4


def test_a_worker_that_dies_refuses_its_recording_alone(
    examiner: Examiner, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder waits for a pipe and is killed; until then it can reach nothing else."""
    pipe = tmp_path / "a.wav"
    os.mkfifo(pipe)
    monkeypatch.setenv("SECRET", "hidden")
    examiner.examine(good, LONGEST_S)
    process, outcomes = process_of(examiner), list[str]()
    eventually(lambda: not process.children())

    def examine() -> None:
        with pytest.raises(RecordingRefused) as refused:
            examiner.examine(pipe, LONGEST_S)
        outcomes.append(str(refused.value))

    with pipe.open("r+b", buffering=0):
        thread = threading.Thread(target=examine)
        thread.start()
        eventually(process.children)
        (worker,) = process.children()
        eventually(lambda: worker.rlimit(psutil.RLIMIT_NPROC)[1] == 0)
        opened = {str(entry.readlink()) for entry in Path(f"/proc/{worker.pid}/fd").iterdir()}
        assert {name for name in opened if not name.startswith("socket:")} == {"/dev/null", str(pipe)}
        assert "hidden" not in worker.environ().values()
        worker.kill()
        thread.join()
    assert outcomes == ["the file cannot be decoded within the limits on memory and time"]
    assert examiner.examine(good, LONGEST_S).format == "m4a"
    assert process.is_running()


def test_a_process_that_dies_is_replaced(examiner: Examiner, good: Path) -> None:
    examiner.examine(good, LONGEST_S)
    process = process_of(examiner)
    process.kill()
    eventually(lambda: process.status() == psutil.STATUS_ZOMBIE)
    assert examiner.examine(good, LONGEST_S).format == "m4a"
    assert process_of(examiner) != process


def test_a_worker_that_cannot_start_a_thread_is_no_fault_of_the_file(good: Path) -> None:
    with closing(Examiner()) as examiner:
        examiner.examine(good, LONGEST_S)
        process = process_of(examiner)
        too_little = process.memory_info().vms + (4 << 20)  # a thread's stack takes 8 MiB
        process.rlimit(psutil.RLIMIT_AS, (too_little, too_little))
        with pytest.raises(StorageUnavailable, match=r"cannot be examined: can't start new thread; try again later"):
            examiner.examine(good, LONGEST_S)
