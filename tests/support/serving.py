"""A real Ray Serve with the project's own configuration, on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.support.children import end, free_port, spawn
from tests.support.server import RECORDINGS, eventually

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class RayServe:
    process: subprocess.Popen[bytes]
    port: int
    client: httpx.Client

    def replicas(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if process.name().startswith("ray::ServeReplica"):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def is_healthy(self) -> bool:
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def is_speaking(self) -> bool:
        """Whether any replica is."""
        return bool(self.queues())

    def queues(self) -> list[int]:
        """Of each replica that speaks, how many requests wait inside it."""
        speaking = [status for status in self._statuses() if status["is_processing"]]
        return list({status["current_request"]["start_time"]: int(status["waiting"]) for status in speaking}.values())

    def _statuses(self) -> Iterator[dict[str, Any]]:
        # Each is of the replica that Ray chooses, which is the one with the least to do: so many are asked for, and
        # held until all have come, that every replica is among them.
        with ExitStack() as held:
            lines = [
                held.enter_context(self.client.stream("GET", "/opus_queue_status/events")).iter_lines()
                for _ in range(8)
            ]
            for status in lines:
                yield json.loads(next(status).removeprefix("data: "))


@contextmanager
def ray_serve(folder: Path, replicas: int = 2, environment: Mapping[str, str] | None = None) -> Iterator[RayServe]:
    """So many replicas with these settings, by default with espeak, until the ``with`` ends.

    Args:
        folder: for the configuration and the log.
    """
    described = yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text())
    port = free_port()
    described["http_options"] |= {"host": "127.0.0.1", "port": port}
    [application] = described["applications"]
    application["args"] = {"ENGINE": "espeak", "REFERENCE_AUDIO_DIR": str(RECORDINGS)} | dict(environment or {})
    application["deployments"][0]["autoscaling_config"] |= {"min_replicas": replicas, "max_replicas": replicas}
    configuration = folder / "ray.yaml"
    configuration.write_text(yaml.safe_dump(described))
    with (folder / "ray.log").open("wb") as log:
        process = spawn(
            [Path(sys.executable).parent / "serve", "run", configuration],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"} | dict(environment or {}),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            serving = RayServe(process, port, client)
            try:
                eventually(lambda: serving.is_healthy() and len(serving.replicas()) == replicas, within_s=480)
                yield serving
            finally:
                end(process, signal.SIGINT)
