"""Out of memory and device failures: the response, the next request, and the end of the process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import torch

from streaming_server import server as server_module
from streaming_server.engines.base import Batching, Engine
from streaming_server.engines.indextts import engine as engine15
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.indextts2 import engine as engine2
from streaming_server.engines.indextts2.options import IndexTTS2Options
from streaming_server.engines.indextts2.runtime import Runtime as Runtime2
from streaming_server.engines.torch import model_engine
from streaming_server.engines.torch.windows import Windows
from streaming_server.errors import DeviceFailed
from tests.engines.indextts import tiny
from tests.engines.indextts2 import tiny as tiny2
from tests.support.fakes import Gate, Step, tone
from tests.support.process import server_process
from tests.support.scripted import BREAKS_THE_DEVICE, SCRIPTED
from tests.support.server import LiveServer, RawClient, by_text, eventually, running

PCM = "/synthesize_stream"
BODY = {"text": "你好。", "seed": 5, "max_mel_tokens": 12, "stream_granularity": "token"}
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
NO_WORKSPACE = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
ILLEGAL_ACCESS = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors …")


@dataclass
class Faults:
    """Raises an error at the third code of a decoding, or at the vocoder; counts the recordings that are analysed."""

    decoding: Exception | None = None
    vocoding: Exception | None = None
    analysed: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for runtime in (Runtime, Runtime2):
            patch.setattr(runtime, "join", self._decoding(runtime.join))
        patch.setattr(Windows, "vocode", self._vocoding(Windows.vocode))
        for module in (engine15, engine2):
            patch.setattr(module, "decode_native", self._reading(module.decode_native))

    def _decoding(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any, **options: Any) -> Iterator[Any]:
            for count, pair in enumerate(decode(*arguments, **options)):
                if count == 2 and self.decoding is not None:
                    raise self.decoding
                yield pair

        return faulty

    def _vocoding(self, vocode: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any, **options: Any) -> Any:
            if self.vocoding is not None:
                raise self.vocoding
            return vocode(*arguments, **options)

        return faulty

    def _reading(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.analysed += 1
            return read(*arguments, **options)

        return counted


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Faults:
    found = Faults()
    found.install(monkeypatch)
    return found


@pytest.fixture(params=["1.5", "2.0"])
def server(
    request: pytest.FixtureRequest, faulty: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LiveServer]:
    monkeypatch.setattr(model_engine, "MAX_LOAD", math.inf)  # a busy machine admits as many requests as an idle one
    engine: Engine
    if request.param == "1.5":
        engine = engine15.IndexTTSEngine(model_dir=tiny.make_checkpoint(tmp_path / "m"), device="cpu")
    else:
        options = IndexTTS2Options(model_dir=tiny2.make_checkpoint(tmp_path / "m", "2.0"), steps=2, device="cpu")
        engine = engine2.IndexTTS2Engine(options)
    with running(engine, max_concurrent=4) as live:
        yield live


def test_a_request_without_enough_memory_ends_alone(server: LiveServer, faulty: Faults) -> None:
    expected = server.post(PCM, BODY).content
    assert faulty.analysed == 1
    engine = server.service.engine
    assert isinstance(engine, Batching)
    assert engine.has_room(2)
    for place, error in (("decoding", NO_MEMORY), ("vocoding", NO_MEMORY), ("decoding", NO_WORKSPACE)):
        setattr(faulty, place, error)
        answer = server.post(PCM, BODY)
        assert answer.status_code == 503
        assert "not enough memory for this text" in answer.json()["detail"]
        assert answer.headers["Retry-After"]
        setattr(faulty, place, None)
        assert server.get("/health").status_code == 200
        assert server.post(PCM, BODY).content == expected
    # Each of them cleared the analyses and halved the number of requests at a time, down to one.
    assert faulty.analysed == 4
    assert not engine.has_room(1)
    assert server.post(PCM, BODY).content == expected
    assert faulty.analysed == 4


def test_an_error_that_leaves_the_device_usable_ends_its_request_alone(server: LiveServer, faulty: Faults) -> None:
    expected = server.post(PCM, BODY).content
    faulty.decoding = ILLEGAL_ACCESS
    assert server.post(PCM, BODY).status_code == 500
    faulty.decoding = None
    assert server.get("/health").status_code == 200
    assert server.post(PCM, BODY).content == expected


def test_an_error_that_every_computation_repeats_fails_the_engine(
    server: LiveServer, faulty: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_FAILED_S", 3600.0)

    def broken(*_: Any, **__: Any) -> None:
        raise ILLEGAL_ACCESS

    faulty.decoding = ILLEGAL_ACCESS
    monkeypatch.setattr(torch, "ones", broken)
    answer = server.post(PCM, BODY)
    assert answer.status_code == 503
    assert "the device of the speech engine failed" in answer.json()["detail"]
    health = server.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
    monkeypatch.undo()
    assert server.post(PCM, BODY).status_code == 503


def test_a_device_that_fails_ends_every_stream_that_is_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_FAILED_S", 3600.0)
    fails = Gate()
    texts: dict[str, list[Step]] = {
        "complete": [tone(20.0)],
        "runs": [tone(0.2), fails, DeviceFailed()],
        "waits": [tone(0.1)],
    }
    with running(by_text(texts)) as live:
        complete = RawClient(live.port, PCM, {"text": "complete"}, receive_buffer=4096)
        eventually(lambda: live.engine.requests and not live.engine.running)
        runs = RawClient(live.port, PCM, {"text": "runs"})
        received = runs.read()
        answers: list[httpx.Response] = []
        waiting = [
            Thread(target=lambda body=body, path=path: answers.append(live.post(path, body)))
            for path, body in ((PCM, {"text": "waits"}), ("/v1/audio/speech", {"model": "m", "input": "waits"}))
        ]
        for thread in waiting:
            thread.start()
        eventually(lambda: len(live.service.slot.status().waiting) == 2)
        fails.open()
        for thread in waiting:
            thread.join()
        received += runs.read_all()
        assert received.startswith(b"HTTP/1.1 200")
        assert not received.endswith(b"0\r\n\r\n")
        for answer in answers:
            assert answer.status_code == 503
            assert "the device of the speech engine failed" in answer.text
            assert answer.headers["Retry-After"]
        assert live.get("/health").status_code == 503
        assert live.post(PCM, {"text": "waits"}).status_code == 503
        assert [request.text for request in live.engine.requests] == ["complete", "runs"]
        # What was synthesised before is sent to its end.
        assert complete.read_all().endswith(b"0\r\n\r\n")


def test_the_process_ends_with_the_status_that_its_supervisor_restarts() -> None:
    with server_process(**SCRIPTED) as server:
        received = RawClient(server.port, PCM, {"text": BREAKS_THE_DEVICE}).read_all()
        assert received.startswith(b"HTTP/1.1 200")
        assert not received.endswith(b"0\r\n\r\n")
        assert server.process.wait(180) == 75
    [error] = [line for line in server.log if '"level": "error"' in line]
    assert "server ends: exit_status=75" in error
