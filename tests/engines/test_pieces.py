"""Pieces of several requests that run as one batch: each request gets what it gets alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streaming_server.engines.indextts2 import flow as flow_module
from streaming_server.engines.indextts2.dit import Estimator, EstimatorShape
from streaming_server.engines.indextts2.flow import Flow, Noise, Reference
from streaming_server.engines.torch.graphs import Graphs
from streaming_server.engines.torch.pieces import Job, Piece, batch_size, batch_sizes, result_of
from streaming_server.engines.torch.vocoder import Generator, GeneratorShape
from streaming_server.engines.torch.vocoding import URGENT_S, VocoderThread, Vocoding
from streaming_server.engines.torch.windows import Windows
from tests.engines.indextts.weights import state
from tests.support.graphs import EmulatedGraphs, substitute
from tests.support.server import eventually

SHAPE = EstimatorShape(
    bands=8, content_width=6, style_width=5, width=16, heads=2, depth=3, inner=24, time_frequencies=16, wave_width=16,
    wave_layers=2, wave_kernel=5, wave_dilation=1,
)  # fmt: skip
FRAMES = 7
"""Of a window of the vocoder."""
CAPACITY = 4
TOLERANCE = 1e-5


@cache
def estimator() -> Estimator:
    made = Estimator(SHAPE)
    made.load_state_dict(state({key: list(value.shape) for key, value in made.state_dict().items()}))
    return made.requires_grad_(requires_grad=False)


@cache
def generator() -> Generator:
    made = Generator(GeneratorShape(8, 8, (4, 2), (8, 4), (3,), ((1,),)))
    made.load_state_dict(state({key: list(value.shape) for key, value in made.state_dict().items()}))
    return made.requires_grad_(requires_grad=False)


@dataclass(frozen=True)
class Request:
    """A solve, or a window of the vocoder for ``steps == 0``."""

    reference: int
    frames: int
    steps: int
    seed: int
    leaves_after: int
    """Pieces."""

    def job(self, flow: Flow, windows: Windows) -> Job[Tensor]:
        rng = torch.Generator().manual_seed(self.seed)
        if not self.steps:
            return windows.vocode(torch.randn(FRAMES, 8, generator=rng))
        mel, told = (torch.randn(self.reference, size, generator=rng) for size in (8, 6))
        reference = Reference(mel, told, torch.ones(5))
        mu = torch.randn(self.frames, 6, generator=rng)
        return flow.solve(reference, mu, Noise(8, self.seed)(0, self.frames), self.steps)


REQUESTS = st.builds(
    Request,
    st.sampled_from([0, 1, 9, 20]),
    st.sampled_from([2, 13, 28, 40]),
    st.sampled_from([0, 3, 4]),
    st.integers(0, 99),
    st.sampled_from([1, 2, 99, 99, 99]),
)


@dataclass(frozen=True)
class Models:
    flow: Flow
    windows: Windows

    @property
    def held(self) -> int:
        """Slots in use."""
        return sum(solve is not None for slots in self.flow._recorded for solve in slots._held)


@pytest.fixture(scope="module", params=[Graphs, EmulatedGraphs])
def recorded(request: pytest.FixtureRequest) -> Iterator[Models]:
    """One for all examples: what a request leaves behind must not reach the next one."""
    with pytest.MonkeyPatch.context() as patch:
        substitute(patch, request.param)
        models = Models(Flow(estimator()), Windows(generator()))
        for target in (28, 44):
            models.flow.record(20, target, CAPACITY)
        models.windows.record(FRAMES, CAPACITY)
        yield models


@cache
def alone(request: Request) -> Tensor:
    return result_of(request.job(Flow(estimator()), Windows(generator())))


def compare(samples: Tensor, request: Request) -> None:
    expected = alone(request)
    assert samples.shape == expected.shape
    assert (samples - expected).abs().max() < TOLERANCE


@settings(max_examples=10)
@given(requests=st.lists(st.tuples(REQUESTS, st.sampled_from([0, 0, 1])), min_size=5, max_size=8), order=st.randoms())
def test_each_request_gets_what_it_gets_alone(
    recorded: Models, requests: list[tuple[Request, int]], order: random.Random
) -> None:
    """Others join and leave before any piece, and each piece runs with any of the equal ones, in any order."""
    running: list[tuple[Request, Job[Tensor], Piece, int]] = []
    waiting = list(requests)
    turn = 0

    def advance(request: Request, job: Job[Tensor], count: int) -> None:
        try:
            piece = next(job)
        except StopIteration as end:
            compare(end.value, request)
        else:
            if count < request.leaves_after:
                running.append((request, job, piece, count))
            else:
                job.close()

    while running or waiting:
        while waiting and (not running or waiting[0][1] <= turn):
            request, _ = waiting.pop(0)
            advance(request, request.job(recorded.flow, recorded.windows), 0)
            turn = 0
        turn += 1
        if running:
            first = order.choice(running)
            equal = [each for each in running if each[2].key == first[2].key]
            most = min(len(equal), first[2].limit)
            chosen = order.sample(equal, order.choice([1, most, most, most]))
            first[2].run([piece.item for _, _, piece, _ in chosen])
            running = [each for each in running if each not in chosen]
            for request, job, _, count in chosen:
                advance(request, job, count + 1)
    assert recorded.held == 0


def test_batches_are_recorded_for_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [batch_sizes(limit) for limit in (1, 3, 8)] == [[1], [1, 2], [1, 2, 4, 8]]
    assert [batch_size(count) for count in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 8]
    flow = Flow(estimator())
    monkeypatch.setattr(flow_module, "MAX_BATCH_FRAMES", 100)
    for target in (12, 60):
        flow.record(20, target, CAPACITY)
    assert [slots.capacity for slots in flow._recorded] == [2, 1]  # a long solve runs alone


def wait(event: threading.Event) -> None:
    assert event.wait(180)


class Scene:
    """A vocoder thread that waits until `run` is called, and the batches that it runs then."""

    def __init__(self) -> None:
        self.thread = VocoderThread(torch.device("cpu"), 1000)
        self.batches: list[list[str]] = []
        self.fails: Callable[[Sequence[str]], bool] = lambda _: False
        self._begin = threading.Event()
        self._sessions = ExitStack()
        self.session().submit(self._wait, lambda: None)

    def _wait(self, _: None) -> Job[Tensor]:
        yield Piece(None, None, lambda items: wait(self._begin))
        return torch.empty(0)

    def session(self, audio_s: float = 0.0) -> Vocoding:
        """Of a listener who has this much audio."""
        session = self._sessions.enter_context(self.thread.session())
        if audio_s:
            session.has_audio(time.monotonic(), audio_s)
        return session

    def submit(self, session: Vocoding, name: str, key: str, pieces: int = 1) -> None:
        def job(_: None) -> Job[Tensor]:
            for _piece in range(pieces):
                yield Piece(key, name, self._run, 3)
            return torch.ones(1)

        session.submit(job, lambda: None)

    def _run(self, names: Sequence[str]) -> None:
        self.batches.append(list(names))
        if self.fails(names):
            raise RuntimeError(names)

    def run(self) -> list[list[str]]:
        self._begin.set()
        eventually(lambda: not self.thread._sessions)
        return self.batches


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made._begin.set()
    made._sessions.close()
    made.thread.close()


def test_who_is_about_to_run_dry_shares_a_batch_with_such_listeners_only(scene: Scene) -> None:
    near, far = scene.session(1000 * URGENT_S), scene.session(2000 * URGENT_S)
    for name, session in {"far": far, "near": near, "soon": scene.session(URGENT_S / 50)}.items():
        scene.submit(session, name, "a")
    for name, key in {"new": "a", "other": "b"}.items():
        scene.submit(scene.session(), name, key)
    scene.submit(far, "far again", "a")
    assert scene.run() == [["new", "soon"], ["other"], ["near", "far"], ["far again"]]


def test_a_job_joins_between_two_pieces_and_a_batch_has_a_limit(scene: Scene) -> None:
    for name, pieces in {"a": 1, "b": 3, "c": 2, "d": 2}.items():
        scene.submit(scene.session(50), name, "solve", pieces)
    assert scene.run() == [["a", "b", "c"], ["b", "c", "d"], ["b", "d"]]


def test_who_leaves_ends_before_the_next_piece(scene: Scene) -> None:
    leaving, staying = scene.session(50), scene.session(60)
    for name, session in {"leaving": leaving, "staying": staying}.items():
        scene.submit(session, name, "solve", pieces=3)
    left = threading.Thread(target=leaving.__exit__)

    def leave(_: Sequence[str]) -> bool:
        if len(scene.batches) == 2:
            left.start()
            eventually(lambda: leaving.is_left)
        return False

    scene.fails = leave
    assert scene.run() == [["leaving", "staying"], ["leaving", "staying"], ["staying"]]
    left.join()
    assert next(staying.rest()) is not None


def test_a_batch_that_fails_ends_only_the_requests_that_fail_alone(scene: Scene) -> None:
    sessions = {name: scene.session(50 + index) for index, name in enumerate("abc")}
    for name, session in sessions.items():
        scene.submit(session, name, "solve")
    scene.fails = lambda names: len(names) > 1 or names == ["b"]
    assert scene.run() == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    for name in "ac":
        assert len(list(sessions[name].rest())) == 1
    with pytest.raises(RuntimeError, match="b"):
        list(sessions["b"].rest())
