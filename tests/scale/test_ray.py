"""Two replicas on a real Ray Serve, started as the documentation says."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.server import RawClient, eventually
from tests.support.serving import RayServe, ray_serve

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PCM = "/synthesize_stream"
LONG = "One of very many sentences. " * 650


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServe]:
    with ray_serve(tmp_path_factory.mktemp("ray")) as running:
        yield running


def test_audio_arrives_as_it_is_made(serving: RayServe) -> None:
    began_s = time.monotonic()
    with serving.client.stream("POST", PCM, json={"text": LONG}) as response:
        pieces = response.iter_raw()
        next(pieces)
        first_s = time.monotonic() - began_s
        size = sum(len(piece) for piece in pieces)
    assert size > 10_000_000
    assert first_s < 0.2 * (time.monotonic() - began_s)


def test_both_replicas_speak_at_once_and_the_next_ones_wait_inside(serving: RayServe) -> None:
    clients: list[RawClient] = []

    def both_speak() -> bool:
        # Ray's own look at the replicas is some milliseconds old: now and then two come to the same.
        clients[:] = [RawClient(serving.port, PCM, {"text": LONG}) for _ in range(2)]
        if all(b"x-queue-position: 0" in client.read().lower() for client in clients):
            return True
        for client in clients:
            client.close()
        eventually(lambda: not serving.is_speaking())
        return False

    eventually(both_speak, within_s=30)
    third = RawClient(serving.port, PCM, {"text": "Third."})
    assert b"x-queue-position: 1" in third.read().lower()
    for client in (*clients, third):
        client.close()
    eventually(lambda: not serving.is_speaking())


@pytest.mark.parametrize("path", [PCM, "/synthesize_stream_opus", "/synthesize"])
def test_a_client_that_leaves_frees_the_slot(serving: RayServe, path: str) -> None:
    client = RawClient(serving.port, path, {"text": LONG})
    eventually(serving.is_speaking)
    client.close()
    assert eventually(lambda: not serving.is_speaking()) < 1


def test_a_killed_replica_is_replaced_and_the_other_speaks_meanwhile(serving: RayServe) -> None:
    doomed = serving.replicas()[0]
    doomed.kill()
    answered = 0

    def speaks() -> bool:
        return serving.client.post("/synthesize", json={"text": "Still here."}).status_code == 200

    eventually(speaks, within_s=20)
    while doomed.pid in {replica.pid for replica in serving.replicas()} or len(serving.replicas()) < 2:
        answered += speaks()
        time.sleep(0.1)
    assert answered
    eventually(lambda: all(speaks() for _ in range(4)), within_s=30)


def test_a_stream_whose_replica_is_killed_ends_cut(serving: RayServe) -> None:
    with serving.client.stream("POST", PCM, json={"text": LONG}) as response:
        pieces = response.iter_raw()
        next(pieces)
        for replica in serving.replicas():
            replica.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in pieces:
                pass
    eventually(lambda: serving.is_healthy() and len(serving.replicas()) == 2, within_s=60)
    assert serving.client.post("/synthesize", json={"text": "Back again."}).status_code == 200
