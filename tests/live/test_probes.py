"""What an orchestrator and Prometheus ask a server."""

from __future__ import annotations

import pytest

from streaming_server.errors import EngineUnavailable
from tests.support.fakes import FakeEngine, Gate
from tests.support.server import LiveServer, eventually, running


def probes(live: LiveServer) -> tuple[tuple[int, str], tuple[int, str]]:
    alive, ready = (live.get(path) for path in ("/livez", "/readyz"))
    return (alive.status_code, alive.json()["status"]), (ready.status_code, ready.json()["status"])


def test_a_server_is_alive_while_it_loads_and_ready_once_it_has() -> None:
    loaded = Gate()
    with running(FakeEngine(warming=[loaded]), wait=False, api_keys=("secret",)) as live:
        assert probes(live) == ((200, "alive"), (503, "loading"))
        loaded.open()
        eventually(lambda: probes(live) == ((200, "alive"), (200, "ready")))


def test_a_server_whose_model_does_not_load_is_never_ready() -> None:
    with running(FakeEngine(warming=[EngineUnavailable("no model")]), wait=False) as live:
        eventually(lambda: probes(live) == ((200, "alive"), (503, "failed")))


@pytest.mark.parametrize(
    ("keys", "given", "status"),
    [
        ((), "", 401),
        ((), "scrape", 200),
        (("secret",), "scrape", 200),
        (("secret",), "secret", 200),
        ((), "other", 401),
    ],
)
def test_metrics_have_a_key_of_their_own(keys: tuple[str, ...], given: str, status: int) -> None:
    with running(FakeEngine(), api_keys=keys, metrics_key="scrape") as live:
        asked = {"Authorization": f"Bearer {given}"} if given else {}
        assert live.get("/metrics", headers=asked).status_code == status
        assert live.get("/opus_queue_status", headers={"X-API-Key": "scrape"}).status_code == (401 if keys else 200)


def test_metrics_tell_what_runs() -> None:
    with running(FakeEngine()) as live:
        lines = live.get("/metrics").text.splitlines()
    assert any(line.startswith('build_info{python="3.') and line.endswith("} 1.0") for line in lines)
    engine = 'speech_engine_info{device="cpu",engine="fake",model="fake",model_version="1.0.0",precision=""} 1.0'
    assert engine in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
