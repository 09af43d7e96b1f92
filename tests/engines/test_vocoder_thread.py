"""The thread that vocodes beside the decoding: when its inputs are copied, and what each stream waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streaming_server.engines.indextts.stream import VocoderThread
from tests.engines.indextts import parity


def test_what_is_decoded_next_does_not_change_a_job_that_waits() -> None:
    """The latents are views of a buffer that the decoding of the next segment overwrites."""
    buffer, begin = torch.zeros(2, 3), threading.Event()

    def first(given: Tensor) -> Tensor:
        begin.wait()
        return given

    with VocoderThread(torch.device("cpu")) as vocoding:
        vocoding.submit(first, lambda: torch.stack([buffer[0]]), is_computed=True)
        vocoding.submit(lambda given: given, lambda: torch.stack([buffer[1]]), is_computed=True)
        buffer.fill_(7.0)
        begin.set()
        assert [samples.tolist() for samples in vocoding.rest()] == 2 * [[[0.0, 0.0, 0.0]]]
    vocoding.close()


def test_decoding_hands_out_copies_unless_it_is_asked_for_views() -> None:
    runtime = parity.build_runtime()
    conditioning = parity.numbers()["cond"]

    def latents(*, views: bool) -> list[Tensor]:
        return [latent for _, latent in runtime.decode(conditioning, [5, 9], 8, do_sample=False, views=views)]

    copies, seen = latents(views=False), latents(views=True)
    assert all(torch.equal(copy, view) for copy, view in zip(copies, seen, strict=True))
    assert len({view.untyped_storage().data_ptr() for view in seen}) == 1
    list(runtime.decode(conditioning, [44, 3, 90], 8, do_sample=False))
    assert [torch.equal(copy, view) for copy, view in zip(copies, seen, strict=True)] != [True] * len(copies)


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

    def record(self, stream: Stream) -> None:
        self.stream = stream


@pytest.mark.parametrize("is_computed", [True, False])
def test_on_cuda_the_copy_waits_for_queued_steps_only_where_it_must(
    is_computed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, entered = Stream(), threading.local()

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

    def vocode(given: Tensor) -> Tensor:
        ran["vocode"] = entered.stream
        return given

    with VocoderThread(torch.device("cuda", 0)) as vocoding:
        vocoding.submit(vocode, copy, is_computed=is_computed)
        [samples] = vocoding.rest()
    vocoding.close()
    assert np.array_equal(samples, [1.0, 1.0])
    assert len({decoding, ran["copy"], ran["vocode"]}) == 3
    assert ran["copy"].waits == ([] if is_computed else [decoding])
    assert ran["vocode"].waits == [ran["copy"]]
    assert decoding.waits == [ran["copy"]]  # the buffer may be overwritten after the copy
