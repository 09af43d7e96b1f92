"""Recording: which stream, which settings, and each key once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.indextts2.flow import Slots
from streaming_server.engines.threads import Waiting
from streaming_server.engines.torch import codes, graphs
from streaming_server.engines.torch.graphs import HIGH_PRIORITY, Graphs
from streaming_server.engines.torch.sampling import Sampling
from streaming_server.engines.torch.weights import vocoder_dtype
from tests.engines.indextts import parity
from tests.engines.indextts2 import parity as parity2

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class FakeStream:
    def __init__(self, *_: Any, priority: int = 0) -> None:
        self.priority = priority

    def wait_stream(self, _: FakeStream) -> None:
        pass


class FakeGraph:
    replays = 0

    def replay(self) -> None:
        self.replays += 1


class FakeCuda:
    """Notes on which stream a function runs, and whether it is being captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.default = FakeStream()
        self.stream = self.default
        self.is_capturing = False
        self.error_modes: list[str] = []
        self.graphs: list[FakeGraph] = []
        for name, value in {
            "Stream": FakeStream,
            "stream": self.on,
            "current_stream": lambda _: self.stream,
            "graph_pool_handle": lambda: (0, 1),
            "CUDAGraph": self.new_graph,
            "graph": self.capture,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def new_graph(self) -> FakeGraph:
        self.graphs.append(FakeGraph())
        return self.graphs[-1]

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    @contextmanager
    def capture(self, _graph: FakeGraph, _pool: Any, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        self.error_modes.append(capture_error_mode)
        self.is_capturing = True
        with self.on(stream):
            yield
        self.is_capturing = False


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_each_captures_where_it_warms_up_and_no_two_share_a_stream(cuda: FakeCuda) -> None:
    runs: list[tuple[FakeStream, bool, bool]] = []
    for priority in (0, HIGH_PRIORITY):
        recorder = Graphs(CUDA, priority)
        recorder.record("a", lambda: runs.append((cuda.stream, cuda.is_capturing, torch.backends.cudnn.benchmark)))
    assert [captured for _, captured, _ in runs] == 2 * [*[False] * graphs.WARM_UPS, True]
    streams = [stream for stream, _, _ in runs]
    first, second = streams[0], streams[-1]
    assert len({first, second, cuda.default}) == 3
    assert streams == [first] * 4 + [second] * 4
    assert (first.priority, second.priority) == (0, HIGH_PRIORITY)
    assert all(searching for _, _, searching in runs)
    assert not torch.backends.cudnn.benchmark
    assert cuda.error_modes == ["thread_local"] * 2
    recorder.run("a", lambda: pytest.fail("the graph is not used"))
    assert [graph.replays for graph in cuda.graphs] == [0, 1]


def test_no_key_is_recorded_twice(cuda: FakeCuda) -> None:
    for device in (CPU, CUDA):
        recorder = Graphs(device)
        recorder.record("a", lambda: None)
        with pytest.raises(ValueError, match="'a' is recorded already"):
            recorder.record("a", lambda: None)
    assert len(cuda.graphs) == 1


def test_recording_again_keeps_the_buffers_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``calibrate`` does after the warm-up."""
    made: list[Slots] = []
    build = Slots.__init__

    def counted(self: Slots, *arguments: Any) -> None:
        made.append(self)
        build(self, *arguments)

    monkeypatch.setattr(Slots, "__init__", counted)
    acoustics = parity2.build_runtime("2.0").acoustics
    for _ in range(2):
        acoustics.flow.record(8, 24)
        acoustics.windows.record(20)
    assert len(made) == 1
    assert acoustics.windows.lengths == [20]


def test_the_steps_can_be_recorded_again() -> None:
    runtime = parity.build_runtime()
    before = [code for code, _ in runtime.decode(parity.numbers()["cond"], [5, 9], 12, do_sample=False)]
    for _ in range(2):
        runtime.record([40])
    assert [code for code, _ in runtime.decode(parity.numbers()["cond"], [5, 9], 12, do_sample=False)] == before


def test_one_segment_with_one_beam_is_decoded_by_the_recorded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Runtime = parity.build_runtime()
    conditioning = parity.numbers()["cond"]
    pairs = list(runtime.decode(conditioning, [5, 9], 12, do_sample=False))
    monkeypatch.setattr(codes, "Decoder", lambda *_: pytest.fail("a decoder without recorded steps"))
    result: list[tuple[list[int], torch.Tensor]] = []

    def decode() -> Iterator[Waiting | None]:
        result.extend((yield from runtime.decode_batch(conditioning, [[5, 9]], 12, Sampling(do_sample=False))))

    list(decode())
    [(found, latents)] = result
    assert found == [code for code, _ in pairs]
    assert torch.equal(latents, torch.stack([latent for _, latent in pairs]))


def test_the_vocoder_stays_in_half_precision_beside_bf16() -> None:
    assert vocoder_dtype(CUDA, torch.bfloat16) == torch.float16
    assert vocoder_dtype(CPU, torch.bfloat16) == torch.bfloat16
    assert vocoder_dtype(CUDA, torch.float32) == torch.float32
