"""Two replicas on a real Ray Serve, started by the command of the documentation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.live.gateway import free_port
from tests.live.server import RawClient, eventually

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
PCM = "/synthesize_stream"
LONG = "One of very many sentences. " * 650


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


@pytest.fixture(scope="module")
def ray_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServe]:
    described = yaml.safe_load((ROOT / "deploy" / "ray.yaml").read_text())
    port = free_port()
    described["http_options"] |= {"host": "127.0.0.1", "port": port}
    [application] = described["applications"]
    application["args"] = {"ENGINE": "espeak", "REFERENCE_AUDIO_DIR": str(ROOT / "reference_audios")}
    application["deployments"][0]["autoscaling_config"]["min_replicas"] = 2
    configuration = tmp_path_factory.mktemp("ray") / "ray.yaml"
    configuration.write_text(yaml.safe_dump(described))
    log = (configuration.parent / "log").open("wb")
    process = subprocess.Popen(
        [Path(sys.executable).parent / "serve", "run", configuration],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        serving = RayServe(process, port, client)
        try:
            eventually(lambda: serving.is_healthy() and len(serving.replicas()) == 2, within_s=120)
            yield serving
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
            log.close()


def test_audio_arrives_as_it_is_made(ray_serve: RayServe) -> None:
    began_s = time.monotonic()
    with ray_serve.client.stream("POST", PCM, json={"text": LONG}) as response:
        pieces = response.iter_raw()
        next(pieces)
        first_s = time.monotonic() - began_s
        size = sum(len(piece) for piece in pieces)
    assert size > 10_000_000
    assert first_s < 0.2 * (time.monotonic() - began_s)


def test_both_replicas_speak_at_once_and_the_next_ones_wait_inside(ray_serve: RayServe) -> None:
    clients = [RawClient(ray_serve.port, PCM, {"text": LONG}) for _ in range(2)]
    heads = [client.read() for client in clients]
    assert all(b"x-queue-position: 0" in head.lower() for head in heads)
    third = RawClient(ray_serve.port, PCM, {"text": "Third."})
    assert b"x-queue-position: 1" in third.read().lower()
    for client in (*clients, third):
        client.close()
    eventually(lambda: not ray_serve.is_speaking())


@pytest.mark.parametrize("path", [PCM, "/synthesize_stream_opus", "/synthesize"])
def test_a_client_that_leaves_frees_the_slot(ray_serve: RayServe, path: str) -> None:
    client = RawClient(ray_serve.port, path, {"text": LONG})
    eventually(ray_serve.is_speaking)
    client.close()
    assert eventually(lambda: not ray_serve.is_speaking()) < 1


def test_a_killed_replica_is_replaced_and_the_other_speaks_meanwhile(ray_serve: RayServe) -> None:
    doomed = ray_serve.replicas()[0]
    doomed.kill()
    answered = 0

    def speaks() -> bool:
        return ray_serve.client.post("/synthesize", json={"text": "Still here."}).status_code == 200

    eventually(speaks, within_s=20)
    while doomed.pid in {replica.pid for replica in ray_serve.replicas()} or len(ray_serve.replicas()) < 2:
        answered += speaks()
        time.sleep(0.1)
    assert answered
    eventually(lambda: all(speaks() for _ in range(4)), within_s=30)


def test_a_stream_whose_replica_is_killed_ends_cut(ray_serve: RayServe) -> None:
    with ray_serve.client.stream("POST", PCM, json={"text": LONG}) as response:
        pieces = response.iter_raw()
        next(pieces)
        for replica in ray_serve.replicas():
            replica.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in pieces:
                pass
    eventually(lambda: ray_serve.is_healthy() and len(ray_serve.replicas()) == 2, within_s=60)
    assert ray_serve.client.post("/synthesize", json={"text": "Back again."}).status_code == 200
