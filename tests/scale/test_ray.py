"""Two replicas on a real Ray Serve, started as documented."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.scripted import BREAKS_THE_DEVICE, SCRIPTED, until
from tests.support.server import RawClient, eventually
from tests.support.serving import RayServe, ray_serve

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
PCM = "/synthesize_stream"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServe]:
    with ray_serve(tmp_path_factory.mktemp("ray"), environment=SCRIPTED) as running:
        yield running


def test_settings_are_checked_as_yaml_gives_them() -> None:
    """A port that every replica on a host would open is refused."""
    program = """from streaming_server.scale.ray import application, InvalidSetting
for args in ({"MCP": True, "WYOMING_PORT": 10200}, {"AGENT_PORT": "10200", "PORT": None}, {"PORT": [1, 2]}):
    try:
        application(args)
    except InvalidSetting as error:
        print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    wyoming, agent, port = ended.stdout.splitlines()
    assert wyoming.startswith("WYOMING_PORT is not available with Ray Serve")
    assert agent.startswith("AGENT_PORT is not available with Ray Serve")
    assert port.startswith("PORT=1,2: ")


def test_audio_arrives_as_it_is_made(serving: RayServe, tmp_path: Path) -> None:
    with serving.client.stream("POST", PCM, json={"text": until(tmp_path / "end")}) as response:
        pieces = response.iter_raw()
        assert next(pieces)
        (tmp_path / "end").touch()
        assert b"".join(pieces)


def test_both_replicas_speak_at_once_and_the_next_ones_wait_inside(serving: RayServe, tmp_path: Path) -> None:
    def ask() -> RawClient:
        return RawClient(serving.port, PCM, {"text": until(tmp_path / "end")})

    def both_speak() -> bool:
        # Ray's own look at the replicas is some milliseconds old: now and then it chooses the one that speaks.
        one_more()
        return len(serving.queues()) == 2

    def one_more() -> None:
        clients.append(ask())
        eventually(lambda: sum(1 + waiting for waiting in serving.queues()) == len(clients))

    clients: list[RawClient] = []
    eventually(both_speak)
    one_more()
    (tmp_path / "end").touch()
    positions = [re.search(rb"x-queue-position: (\d+)", client.read().lower()) for client in clients]
    first, second, *others = sorted(int(found[1]) for found in positions if found)
    assert first == second == 0
    assert len(others) == len(clients) - 2
    assert all(others)
    for client in clients:
        client.close()
    eventually(lambda: not serving.is_speaking())


@pytest.mark.parametrize("path", [PCM, "/synthesize_stream_opus", "/synthesize"])
def test_a_client_that_leaves_frees_the_slot(serving: RayServe, path: str, tmp_path: Path) -> None:
    client = RawClient(serving.port, path, {"text": until(tmp_path / "never")})
    eventually(serving.is_speaking)
    client.close()
    eventually(lambda: not serving.is_speaking())


def test_a_replica_whose_device_fails_is_replaced_and_the_other_speaks_meanwhile(serving: RayServe) -> None:
    before = {replica.pid for replica in serving.replicas()}
    received = RawClient(serving.port, PCM, {"text": BREAKS_THE_DEVICE}).read_all()
    assert received.startswith(b"HTTP/1.1 200 ")
    assert not received.endswith(b"0\r\n\r\n")  # the stream is cut
    answered = 0

    def replaced() -> bool:
        nonlocal answered
        answered += speaks(serving)
        pids = {replica.pid for replica in serving.replicas()}
        return len(pids) == 2 and len(pids - before) == 1

    eventually(replaced, within_s=480)
    assert answered
    eventually(lambda: all(speaks(serving) for _ in range(4)), within_s=480)


def test_a_stream_whose_replica_is_killed_ends_cut(serving: RayServe, tmp_path: Path) -> None:
    with serving.client.stream("POST", PCM, json={"text": until(tmp_path / "never")}) as response:
        pieces = response.iter_raw()
        next(pieces)
        for replica in serving.replicas():
            replica.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in pieces:
                pass
    eventually(lambda: serving.is_healthy() and len(serving.replicas()) == 2, within_s=480)
    eventually(lambda: speaks(serving))


def speaks(serving: RayServe) -> bool:
    try:
        return serving.client.post("/synthesize", json={"text": "Still here."}).status_code == 200
    except httpx.TransportError:
        return False
