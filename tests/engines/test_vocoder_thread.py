"""The thread that vocodes beside the decoding: when its inputs are copied, and what each stream waits for."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streaming_server.engines.threads import WAITING, Waiting
from streaming_server.engines.torch.pieces import Job, Piece
from streaming_server.engines.torch.sampling import Sampling
from streaming_server.engines.torch.vocoding import VocoderThread
from tests.engines.indextts import parity
from tests.support.server import eventually

RATE_HZ = 24_000


def unchanged(given: Tensor) -> Job[Tensor]:
    """A job without pieces."""
    yield from ()
    return given


def test_what_is_decoded_next_does_not_change_a_job_that_waits() -> None:
    """The latents are views of a buffer that the decoding of the next segment overwrites."""
    buffer, begin = torch.zeros(2, 3), threading.Event()

    def first(given: Tensor) -> Job[Tensor]:
        begin.wait()
        return (yield from unchanged(given))

    thread = VocoderThread(torch.device("cpu"), RATE_HZ)
    with thread.session() as vocoding:
        vocoding.submit(first, lambda: torch.stack([buffer[0]]), is_computed=True)
        vocoding.submit(unchanged, lambda: torch.stack([buffer[1]]), is_computed=True)
        buffer.fill_(7.0)
        begin.set()
        rest = list(vocoding.rest())
        assert [np.asarray(samples).tolist() for samples in rest] == 2 * [[[0.0, 0.0, 0.0]]]
    thread.close()


def test_decoding_hands_out_copies_and_a_joined_prompt_views() -> None:
    runtime = parity.build_runtime()
    conditioning = parity.numbers()["cond"]

    def joined(text: list[int]) -> list[Tensor]:
        pairs = runtime.join(conditioning, text, 8, Sampling(do_sample=False))
        return [pair[1] for pair in pairs if not isinstance(pair, Waiting)]

    copies = [latent for _, latent in runtime.decode(conditioning, [5, 9], 8, do_sample=False)]
    seen = joined([5, 9])
    assert all(torch.equal(copy, view) for copy, view in zip(copies, seen, strict=True))
    assert len({view.untyped_storage().data_ptr() for view in seen}) == 1
    joined([44, 3, 90])
    assert [torch.equal(copy, view) for copy, view in zip(copies, seen, strict=True)] != [True] * len(copies)


def test_the_listener_who_runs_dry_first_is_served_first() -> None:
    """One without audio so far before those that have some; jobs of one request in their order."""
    thread, begin, ran = VocoderThread(torch.device("cpu"), RATE_HZ), threading.Event(), []

    def job(name: str, seconds: float) -> Callable[[None], Job[Tensor]]:
        def vocode(_: None) -> Job[Tensor]:
            begin.wait()
            ran.append(name)
            return (yield from unchanged(torch.zeros(round(seconds * RATE_HZ))))

        return vocode

    with thread.session() as ahead, thread.session() as behind, thread.session() as new:
        ahead.has_audio(now_s=1e9, audio_s=9.0)
        behind.has_audio(now_s=1e9 + 5, audio_s=1.0)
        with thread.session() as first:
            first.submit(job("first", 1.0), lambda: None)
            for session, name, seconds in (
                (ahead, "ahead", 1.0), (behind, "behind 1", 2.0), (behind, "behind 2", 9.0), (behind, "behind 3", 1.0),
                (new, "new", 1.0),
            ):  # fmt: skip
                session.submit(job(name, seconds), lambda: None)
            begin.set()
            for session in (first, ahead, behind, new):
                list(session.rest())
    thread.close()
    assert ran == ["first", "new", "behind 1", "behind 2", "ahead", "behind 3"]
    assert thread.load.s_per_audio_s > 0


def test_leaving_withdraws_the_jobs_that_have_not_begun() -> None:
    thread, ran = VocoderThread(torch.device("cpu"), RATE_HZ, lambda: None), list[str]()
    begun, go_on = threading.Event(), threading.Event()

    def vocode(name: str) -> Job[Tensor]:
        ran.append(name)
        begun.set()
        go_on.wait()
        return (yield from unchanged(torch.zeros(3)))

    def go_on_once_left() -> None:
        try:
            eventually(lambda: left.is_left)
        finally:
            go_on.set()

    with thread.session() as other:
        with thread.session() as left:
            left.submit(vocode, lambda: "running")
            left.submit(vocode, lambda: "queued")
            other.submit(vocode, lambda: "other")
            assert list(itertools.islice(left.rest(), 3)) == [WAITING] * 3
            assert begun.wait(180)
            going_on = threading.Thread(target=go_on_once_left)
            going_on.start()
        going_on.join()
        while not isinstance(next(other.rest()), np.ndarray):
            pass
    thread.close()
    assert ran == ["running", "other"]


class Stream:
    """Notes what it waits for: events by the stream that recorded them, and streams."""

    def __init__(self, *_: Any) -> None:
        self.waits: list[Stream | None] = []

    def wait_event(self, event: Event) -> None:
        self.waits.append(event.stream)

    def wait_stream(self, stream: Stream) -> None:
        self.waits.append(stream)


class Event:
    stream: Stream | None = None
    waited_for = 0
    """By the host."""

    def record(self, stream: Stream) -> None:
        self.stream = stream

    def synchronize(self) -> None:
        Event.waited_for += 1


@pytest.mark.parametrize("is_computed", [True, False])
def test_on_cuda_the_copy_waits_for_queued_steps_only_where_it_must(
    is_computed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, entered = Stream(), threading.local()
    monkeypatch.setattr(Event, "waited_for", 0)

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        entered.stream = stream
        yield
        entered.stream = None

    for name, value in {"Stream": Stream, "Event": Event, "stream": on, "current_stream": lambda _: decoding}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    ran: dict[str, Stream] = {}

    def copy() -> Tensor:
        ran["copy"] = entered.stream
        return torch.ones(2)

    launched_ahead: list[int] = []

    def vocode(given: Tensor) -> Job[Tensor]:
        ran["vocode"] = entered.stream
        for batch in range(4):
            yield Piece(None, batch, lambda items: launched_ahead.append(items[0] - Event.waited_for))
        return given

    thread = VocoderThread(torch.device("cuda", 0), RATE_HZ)
    with thread.session() as vocoding:
        vocoding.submit(vocode, copy, is_computed=is_computed)
        [samples] = vocoding.rest()
    thread.close()
    assert np.array_equal(np.asarray(samples), [1.0, 1.0])
    assert len({decoding, ran["copy"], ran["vocode"]}) == 3
    assert ran["copy"].waits == ([] if is_computed else [decoding])
    assert ran["vocode"].waits == [ran["copy"]]
    assert launched_ahead == [0, 1, 1, 1]  # so that a more urgent piece waits for one batch at most
    assert decoding.waits == [ran["copy"]]  # the buffer may be overwritten after the copy


def test_a_listener_who_was_without_audio_plays_on_from_then() -> None:
    thread = VocoderThread(torch.device("cpu"), RATE_HZ)
    with thread.session() as session:
        session.has_audio(now_s=100.0, audio_s=1.0)
        session.has_audio(now_s=100.5, audio_s=1.0)
        assert session.runs_dry_s == 102.0
        session.has_audio(now_s=110.0, audio_s=1.0)
        assert session.runs_dry_s == 111.0
    thread.close()
