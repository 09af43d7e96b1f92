"""Several requests at a time with ``MAX_CONCURRENT``: each gets what it gets alone, and what the queue says of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import numpy as np
import pytest

from streaming_server.domain import AudioChunk, SpeechRequest
from streaming_server.engines.espeak.engine import EspeakEngine
from streaming_server.engines.hibari.engine import HibariEngine
from streaming_server.engines.indextts.engine import IndexTTSEngine
from streaming_server.engines.indextts2.engine import IndexTTS2Engine
from streaming_server.engines.indextts2.options import IndexTTS2Options
from streaming_server.engines.torch.decoding import Decoder
from streaming_server.engines.torch.model_engine import ModelEngine
from tests.engines.indextts import tiny
from tests.engines.indextts2 import tiny as tiny2
from tests.support.server import LiveServer, RawClient, eventually, running

PCM = "/synthesize_stream"
CAPACITY = 3
BODIES = [
    {"text": "你好。", "seed": 5, "max_mel_tokens": 30, "stream_granularity": "token"},
    {"text": "Hello there, how are you?", "seed": 6, "max_mel_tokens": 24, "temperature": 1.3, "top_k": 0},
    {
        "text": "今天天气很好。Good morning.",
        "seed": 7,
        "max_mel_tokens": 40,
        "stream_granularity": "sentence",
        "num_beams": 1,
    },
]


@pytest.fixture(params=["1.5", "2.0"], scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("model") / "m"
    engine: ModelEngine
    if request.param == "1.5":
        engine = IndexTTSEngine(model_dir=tiny.make_checkpoint(folder), device="cpu")
    else:
        options = IndexTTS2Options(model_dir=tiny2.make_checkpoint(folder, "2.0"), steps=2, device="cpu")
        engine = IndexTTS2Engine(options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelEngine, "has_room", lambda *_: True)  # on a busy machine there may be none
        with running(engine, max_concurrent=CAPACITY) as live:
            yield live


def steps_wait_for(condition: Callable[[Decoder], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no row of the shared decoder advance before the condition has held once."""
    step, begun = Decoder.step, False

    def waiting(self: Decoder) -> bool:
        nonlocal begun
        begun = begun or condition(self)
        if begun or self.rows != CAPACITY:
            return step(self)
        time.sleep(0.005)
        return True

    monkeypatch.setattr(Decoder, "step", waiting)


def same(found: bytes, expected: bytes) -> bool:
    """Whether the samples agree but for their rounding."""
    one, other = (np.frombuffer(pcm, np.int16).astype(int) for pcm in (found, expected))
    return len(one) == len(other) > 0 and int(np.abs(one - other).max()) <= 1


def test_each_of_several_streams_is_the_one_it_is_alone(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [server.post(PCM, body).content for body in BODIES]
    steps_wait_for(lambda decoder: decoder.joined == CAPACITY, monkeypatch)
    with ThreadPoolExecutor(CAPACITY) as clients:
        together = list(clients.map(lambda body: server.post(PCM, body).content, BODIES))
    assert all(map(same, together, alone))


def test_a_client_that_leaves_frees_its_row_for_the_next(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = server.post(PCM, BODIES[0]).content
    begin = threading.Event()
    steps_wait_for(lambda _: begin.is_set(), monkeypatch)
    assert {"active", "capacity"} <= server.get("/opus_queue_status").json().keys()

    def status() -> dict[str, object]:
        found: dict[str, object] = server.get("/opus_queue_status").json()
        return {key: found[key] for key in ("is_processing", "queue_available", "active", "capacity")}

    leaving = [RawClient(server.port, PCM, BODIES[1]) for _ in range(CAPACITY)]
    eventually(lambda: status()["active"] == CAPACITY)
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(lambda: server.post(PCM, BODIES[0]).content)
        eventually(lambda: len(server.service.slot.status().waiting) == 1)
        assert status() == {"is_processing": True, "queue_available": False, "active": 3, "capacity": 3}
        leaving.pop().close()
        eventually(lambda: not server.service.slot.status().waiting)
        for client in leaving:
            client.close()
        eventually(lambda: status()["active"] == 1)
        assert status()["queue_available"] is True
        begin.set()
        assert same(waiting.result(), expected)
    eventually(lambda: status()["active"] == 0)


# The default engine


class HeldEngine(HibariEngine):
    """Begins no synthesis before it may."""

    def __init__(self) -> None:
        super().__init__(EspeakEngine())
        self.may_begin = threading.Event()

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        while not self.may_begin.is_set():
            await asyncio.sleep(0.005)
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    def has_room(self, active: int) -> bool:
        return True  # on a busy machine there may be none


def test_the_default_engine_speaks_to_several_at_once() -> None:
    texts = ["Hello there, how are you?", "Good morning. 早上好。", "Да. The birch canoe slid on the smooth planks."]
    bodies = [{"text": text, "seed": 5} for text in texts]
    engine = HeldEngine()
    with running(engine, max_concurrent=CAPACITY) as server, ThreadPoolExecutor(CAPACITY) as clients:
        engine.may_begin.set()
        alone = [server.post(PCM, body).content for body in bodies]
        engine.may_begin.clear()
        together = [clients.submit(server.post, PCM, body) for body in bodies]
        eventually(lambda: server.queue()["active"] == CAPACITY)
        assert server.queue()["queue_available"] is False
        engine.may_begin.set()
        assert [each.result().content for each in together] == alone
        assert all(alone)
        eventually(lambda: server.queue()["active"] == 0)
