"""A real Ray Serve with the project's own configuration, on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
        """Whether any replica is: each status is one's own, so enough of them are asked for."""
        return any(self.client.get("/opus_queue_status").json()["is_processing"] for _ in range(8))


@contextmanager
def ray_serve(folder: Path, replicas: int = 2) -> Iterator[RayServe]:
    """So many replicas that speak with espeak, until the ``with`` ends; ``folder`` is for what that takes."""
    described = yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text())
    port = free_port()
    described["http_options"] |= {"host": "127.0.0.1", "port": port}
    [application] = described["applications"]
    application["args"] = {"ENGINE": "espeak", "REFERENCE_AUDIO_DIR": str(RECORDINGS)}
    application["deployments"][0]["autoscaling_config"]["min_replicas"] = replicas
    configuration = folder / "ray.yaml"
    configuration.write_text(yaml.safe_dump(described))
    with (folder / "ray.log").open("wb") as log:
        process = spawn(
            [Path(sys.executable).parent / "serve", "run", configuration],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            serving = RayServe(process, port, client)
            try:
                eventually(lambda: serving.is_healthy() and len(serving.replicas()) == replicas, within_s=240)
                yield serving
            finally:
                end(process, signal.SIGINT)
