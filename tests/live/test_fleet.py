"""The combined queue status of several real servers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from streaming_server.app import create_app
from streaming_server.environment import InvalidSetting
from streaming_server.settings import Settings
from tests.support.children import free_port
from tests.support.fakes import FOREVER, FakeEngine, Step, tone
from tests.support.server import LiveServer, RawClient, around_now, by_text, eventually, running

SCRIPTS: dict[str, list[Step]] = {"long": [tone(0.1), FOREVER], "next": [tone(0.1)]}
STATUS = "/opus_queue_status"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stalls is not unreachable."""
    monkeypatch.setattr("streaming_server.api.fleet._TIMEOUT_S", 120.0)


@contextmanager
def fleet_of(count: int, *absent: str, **settings: Any) -> Iterator[list[LiveServer]]:
    """Servers that list each other and unreachable ones in `FLEET`."""
    ports = [free_port() for _ in range(count)]
    urls = (*(f"http://127.0.0.1:{port}/" for port in ports), *absent)
    with ExitStack() as stack:
        yield [stack.enter_context(running(by_text(SCRIPTS), port=port, fleet=urls, **settings)) for port in ports]


def status(live: LiveServer, **options: Any) -> dict[str, Any]:
    body: dict[str, Any] = live.get(STATUS, params={"fleet": 1}, **options).json()
    return body


def test_the_fleet_is_the_sum_of_its_servers() -> None:
    with fleet_of(2) as (one, two):
        idle = status(one)
        assert idle.pop("timestamp") == around_now()
        quiet = {"status": "healthy", "is_processing": False, "queue_available": True, "waiting": 0}
        assert idle == {
            "is_processing": False,
            "queue_available": True,
            "processing": 0,
            "waiting": 0,
            "servers_total": 2,
            "servers_healthy": 2,
            "servers": [{"url": f"http://127.0.0.1:{live.port}", **quiet} for live in (one, two)],
        }
        holding = [RawClient(two.port, "/synthesize_stream", {"text": "long"}) for _ in range(3)]
        eventually(lambda: status(one)["waiting"] == 2)
        busy = status(one)
        assert (busy["is_processing"], busy["queue_available"], busy["processing"]) == (True, True, 1)
        assert [server["is_processing"] for server in busy["servers"]] == [False, True]
        assert busy["servers"][1]["current_request"]["text_preview"] == "long"
        holding.append(RawClient(one.port, "/synthesize_stream", {"text": "long"}))
        eventually(lambda: status(two)["processing"] == 2)
        assert status(two)["queue_available"] is False
        for client in holding:
            client.close()


def test_without_the_flag_it_is_this_server_alone() -> None:
    with fleet_of(2) as (one, two):
        holding = RawClient(two.port, "/synthesize_stream", {"text": "long"})
        eventually(lambda: two.queue()["is_processing"])
        for query in ({}, {"fleet": "0"}):
            assert set(one.get(STATUS, params=query).json()) == {"is_processing", "queue_available", "timestamp"}
            assert one.get(STATUS, params=query).json()["is_processing"] is False
        holding.close()


def test_a_server_that_is_down_or_loading_is_called_so_and_counts_for_nothing() -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    loading = FakeEngine(warming=[FOREVER])
    port = free_port()
    with (
        running(loading, port=port, wait=False),
        fleet_of(1, gone, f"http://127.0.0.1:{port}") as (one,),
    ):
        told = status(one)
        assert [server["status"] for server in told["servers"]] == ["healthy", "unreachable", "loading"]
        assert told["servers"][1] == {"url": gone, "status": "unreachable", "error": "no connection"}
        assert (told["servers_total"], told["servers_healthy"], told["queue_available"]) == (3, 1, True)
        holding = RawClient(one.port, "/synthesize_stream", {"text": "long"})
        eventually(lambda: status(one)["processing"] == 1)
        assert status(one)["queue_available"] is False
        holding.close()


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        fleet_of(1, f"http://127.0.0.1:{silent.getsockname()[1]}") as (one,),
    ):
        assert status(one)["servers"][1]["error"] == "no answer within 2 s"


def test_what_is_no_server_of_this_kind_is_called_so() -> None:
    with running(by_text(SCRIPTS)) as other, fleet_of(1, f"http://127.0.0.1:{other.port}/v1") as (one,):
        assert status(one)["servers"][1]["error"] == "not a server of this kind"


def test_the_callers_key_is_shown_to_the_others() -> None:
    with fleet_of(2, api_keys=("secret",)) as (one, _):
        assert one.get(STATUS, params={"fleet": 1}).status_code == 401
        for header in ({"X-API-Key": "secret"}, {"xi-api-key": "secret"}, {"Authorization": "Bearer secret"}):
            assert status(one, headers=header)["servers_healthy"] == 2


def test_where_the_keys_differ_the_answer_says_so() -> None:
    with (
        running(by_text(SCRIPTS), api_keys=("other",)) as other,
        fleet_of(1, f"http://127.0.0.1:{other.port}") as (one,),
    ):
        assert status(one)["servers"][1]["error"] == "answered with 401"


@pytest.mark.parametrize("value", ["1", "2", "all"])
def test_without_a_fleet_the_flag_is_refused(value: str) -> None:
    with running(by_text(SCRIPTS)) as live:
        response = live.get(STATUS, params={"fleet": value})
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["query", "fleet"]
        if value == "1":
            assert "FLEET is not set" in response.json()["detail"][0]["msg"]


def test_a_fleet_of_what_are_no_urls_is_refused_at_the_start() -> None:
    with pytest.raises(InvalidSetting, match="FLEET=gpu1:8000: must be base URLs such as"):
        create_app(Settings(engine="espeak", fleet=("gpu1:8000",)))
