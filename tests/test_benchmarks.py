"""The parts that the benchmarks share: a server in its own process, and the tables of tasks that are measured."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from benchmarks import common, jobs, kernels, kokoro
from streaming_server.jobs.database import Database
from streaming_server.jobs.store import JobState, JobStore


def test_the_bare_stream_is_ready_and_sends_audio() -> None:
    with common.running_server("benchmarks.bare_stream") as server:
        assert asyncio.run(common.first_audio_ms(server.port, "/bare", "Hello.")) > 0


def test_a_benchmarks_server_leaves_the_data_of_other_servers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "data"
    monkeypatch.setenv("DATA_DIR", str(own))
    with common.running_server(ENGINE="espeak") as server:
        assert asyncio.run(common.status_of(server.port, "/health")) == 200
    assert not own.exists()


def test_the_table_of_tasks_is_filled_up_to_each_size(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}")
    store = JobStore(database, max_pending=1000, lease_s=60)
    jobs.fill(database, 40)
    jobs.fill(database, 60)
    assert store.page(1)[1] == 60
    assert store.counts()[JobState.PENDING] == 3
    assert set(jobs.measured(store, 60, rounds=2)) >= {"list 50", "submit", "claim", "finish"}
    assert store.page(1)[1] == 62
    database.close()


def test_the_comparison_with_kokoro_onnx_names_the_missing_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kokoro_onnx", None)
    monkeypatch.setattr(sys, "argv", ["kokoro"])
    with pytest.raises(SystemExit):
        kokoro.main()
    assert "pip install kokoro-onnx" in capsys.readouterr().err


@pytest.mark.slow
def test_the_documented_windows_of_the_vocoder_are_counted() -> None:
    page = (common.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| (\d\.\d): (vocoder, .*?)(?: \(.*\))? \|", page, re.MULTILINE)
    counted = [name for name, *_ in kernels.measured([1]) if "vocoder" in name]
    windows = [f"{version} {what}" for version, what in documented]
    assert counted == [window + kind for window in windows for kind in ("", ", separate operators")]
