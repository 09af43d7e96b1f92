"""A server and its workers over one broker, as processes of their own."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from streaming_server.jobs import database
from tests.support.brokers import Broker, Service
from tests.support.children import handles
from tests.support.process import ROOT
from tests.support.server import LiveServer, eventually, running, speaking

CLI = (sys.executable, "-m", "streaming_server.cli", "worker")
TIMED = (sys.executable, "-m", "tests.support.timed_worker")


@dataclass
class Fleet:
    """The workers are children of this process, each with a log in the data directory."""

    server: LiveServer
    data_dir: Path
    environment: dict[str, str]
    workers: list[Service] = field(default_factory=list)

    def start(self, count: int, command: Sequence[str] = TIMED, **environment: str) -> list[Service]:
        """Start workers, and wait until each of them takes tasks."""
        before = self.alive()
        new = [Service(self.data_dir, *command, **self.environment, **environment) for _ in range(count)]
        self.workers += new
        eventually(lambda: len(self.alive() - before) == count or self._check(new), within_s=180)
        # Before, a SIGTERM ends a worker without its farewell.
        eventually(lambda: all(handles(worker.process, signal.SIGTERM) for worker in new))
        return new

    def kill(self, worker: Service) -> None:
        """As if the machine were switched off."""
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
        self.workers.remove(worker)
        worker.stop()

    def alive(self) -> set[str]:
        with sqlite3.connect(self.data_dir / "server.db") as database:
            return {name for (name,) in database.execute("SELECT id FROM workers")}

    def submit(self, text: str, output: str) -> dict[str, Any]:
        """Begin a workflow that speaks; what the server said."""
        answer = self.server.post("/v1/workflows", speech(text, output), params={"wait": "false"})
        assert answer.status_code == 202, answer.text
        accepted: dict[str, Any] = answer.json()
        return accepted

    def status(self, workflow_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get(f"/v1/workflows/status/{workflow_id}").json()
        return found

    def is_running(self, workflow_id: str) -> bool:
        return bool(self.status(workflow_id)["stages"][0]["status"] == "running")

    def is_completed(self, workflow_id: str) -> bool:
        return bool(self.status(workflow_id)["status"] == "completed")

    def rows(self, columns: str) -> list[tuple[Any, ...]]:
        """Of all jobs, in their order."""
        with sqlite3.connect(self.data_dir / "server.db") as database:
            return list(database.execute(f"SELECT {columns} FROM jobs ORDER BY number"))

    def owner(self, task_id: str) -> str:
        """The worker that has or had a task."""
        (found,) = (row for row in self.rows("id, owner") if row[0] == task_id)
        return str(found[1])

    def worker_of(self, task_id: str) -> Service:
        """The worker that has a task, once one has it."""
        found: list[Service] = []

        def is_owned() -> bool:
            owner = self.owner(task_id)
            found[:] = (worker for worker in self.workers if f"-{worker.process.pid}-" in owner)
            return bool(found)

        eventually(is_owned)
        return found[0]

    def _check(self, workers: Sequence[Service]) -> bool:
        for worker in workers:
            assert worker.process.poll() is None, worker.log()
        return False


@contextmanager
def fleet(broker: Broker, **environment: str) -> Iterator[Fleet]:
    """A server without workers yet; ``environment`` is theirs and, where they share settings, the server's."""
    settings: dict[str, Any] = {
        "task_lease_s": float(environment.get("TASK_LEASE_S", 6)),
        "max_task_attempts": int(environment.get("MAX_TASK_ATTEMPTS", 5)),
    }
    broker.clear()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        data_dir = Path(folder)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(database, "_LOCK_TIMEOUT_MS", 60_000)  # as that of the workers
        engine = speaking()
        server = stack.enter_context(running(engine, data_dir=data_dir, celery_broker_url=broker.url, **settings))
        own = {
            "CELERY_BROKER_URL": broker.url,
            "DATA_DIR": folder,
            "REFERENCE_AUDIO_DIR": str(ROOT / "reference_audios"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        found = Fleet(server, data_dir, own | environment)
        try:
            yield found
        finally:
            for worker in found.workers:
                worker.stop()
        assert not engine.requests, "the server did a worker's task"


def speech(text: str, output: str, *others: str, **fields: Any) -> dict[str, Any]:
    """A body whose chain speaks, after what else it does."""
    named = {"text": text, "output_path": f"/share/{output}", **fields}
    chain = [*others, "indextts.generate_speech"]
    return {
        "video_path": "/app/videos/example.mp4",
        "workflow_config": {"workflow_chain": chain, "indextts_config": named},
    }
