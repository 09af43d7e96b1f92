"""Rows that join and leave a decoder: what each decodes does not depend on the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen

from streaming_server.engines.threads import WAITING
from streaming_server.engines.torch import decoding
from streaming_server.engines.torch.codes import CodeWriter
from streaming_server.engines.torch.decoding import MAX_UNTAKEN, Decoder
from streaming_server.engines.torch.gpt import CodeGpt
from streaming_server.engines.torch.graphs import Graphs
from streaming_server.engines.torch.model_engine import keeps_deadlines
from streaming_server.engines.torch.rows import Row
from streaming_server.engines.torch.sampling import RANKED, Sampling, Warp
from streaming_server.engines.torch.vocoding import VocoderThread
from tests.engines.indextts import parity
from tests.support.attention import kernel
from tests.support.graphs import EmulatedGraphs, substitute

ROWS = 3
RATE_HZ = 24_000
MAX_CODES = 24
SAMPLINGS = [
    Sampling(),
    Sampling(do_sample=False),
    Sampling(top_k=0, top_p=0.7, temperature=1.4),
    Sampling(top_k=5, top_p=0.5, temperature=0.6, repetition_penalty=1.3),
]
TEXTS = [[5, 9, 30, 7], [44, 3], [8, 8, 61, 100, 23, 4, 19, 2, 70], [90], list(range(20, 50))]


@dataclass(frozen=True)
class Request:
    text: int
    sampling: int
    seed: int
    codes: int
    leaves_after: int
    takes_every: int
    """Steps between two looks at its codes."""


REQUESTS = st.builds(
    Request,
    st.integers(0, len(TEXTS) - 1),
    st.integers(0, len(SAMPLINGS) - 1),
    st.integers(0, 2),
    st.sampled_from([0, 1, 7, MAX_CODES]),
    st.sampled_from([0, 1, 5, MAX_CODES, MAX_CODES]),
    st.sampled_from([1, 1, 1, 2, 9]),
)


@cache
def gpt() -> CodeGpt:
    """The fixtures' model, but one that stops after some codes, differently for each text."""
    model = parity.build_runtime().gpt
    bias = model.mel_head.bias.data.clone()  # the weights themselves belong to the other runtimes too
    bias[65] = 0.4
    model.mel_head.bias.data = bias
    return model


def prompt(text: int) -> Tensor:
    return gpt().started(
        torch.cat([torch.from_numpy(parity.numbers()["cond"]), gpt().words(torch.tensor(TEXTS[text]))])
    )


@pytest.fixture(scope="module")
def short_spans() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "SPAN", 16)
        patch.setattr(decoding, "BUCKET", 16)
        yield


@pytest.fixture(scope="module", params=["unrecorded", "by span", "by length"])
def decoder(request: pytest.FixtureRequest, short_spans: None) -> Iterator[Decoder]:
    """One decoder for all examples: what a prompt leaves behind must not reach the next one."""
    with pytest.MonkeyPatch.context() as patch:
        substitute(patch, Graphs if request.param == "unrecorded" else EmulatedGraphs)
        patch.setattr(gpt().gpt, "reads_lengths", request.param == "by length")
        patch.setattr(varlen, "varlen_attn_out", kernel)
        made = Decoder(gpt(), ROWS, len(prompt(4)) + MAX_CODES, MAX_CODES)  # just enough for the longest request
        made.record(longest=50)
        yield made


@cache
def alone(text: int, sampling: int, seed: int) -> tuple[list[int], Tensor]:
    """Codes until STOP, and their latents, by a decoder of one row."""
    decoder = Decoder(gpt(), 1, 100, MAX_CODES)
    rng = torch.Generator().manual_seed(seed)
    codes = [code for (code,) in decoder.run([prompt(text)], MAX_CODES, SAMPLINGS[sampling], [rng])]
    return codes, decoder.latents[0, : len(codes)].clone()


class Client:
    """Joins, takes its codes from time to time, and leaves."""

    def __init__(self, decoder: Decoder, request: Request) -> None:
        self.request = request
        self.codes: list[int] = []
        self._decoder = decoder
        rng = torch.Generator().manual_seed(request.seed)
        self.row: Row = decoder.join(prompt(request.text), request.codes, SAMPLINGS[request.sampling], rng)

    def look(self, step: int) -> bool:
        """Take what is there; return whether it has left."""
        if step % self.request.takes_every == 0:
            while self.row.codes and len(self.codes) < self.request.leaves_after:
                self.codes.append(self.row.codes.popleft())
        if len(self.codes) < self.request.leaves_after and not (self.row.is_ended and not self.row.codes):
            return False
        self.compare()
        self._decoder.leave(self.row)
        return True

    def compare(self) -> None:
        codes, latents = alone(self.request.text, self.request.sampling, self.request.seed)
        expected = min(self.request.codes, self.request.leaves_after)
        assert self.codes == codes[:expected]
        found = self._decoder.latents[self.row.index, : len(self.codes)]
        torch.testing.assert_close(found, latents[: len(self.codes)], atol=1e-4, rtol=0)


@settings(max_examples=12)
@given(st.lists(st.tuples(REQUESTS, st.integers(0, 3)), min_size=1, max_size=7))
def test_each_request_decodes_what_it_decodes_alone(decoder: Decoder, arrivals: list[tuple[Request, int]]) -> None:
    """Other rows join and leave after any number of steps."""
    waiting = deque(arrivals)
    clients: list[Client] = []
    step, pause = 0, waiting[0][1]
    while waiting or clients:
        if waiting and pause <= 0 and not decoder.is_full:
            clients.append(Client(decoder, waiting.popleft()[0]))
            pause = waiting[0][1] if waiting else 0
        decoder.step()
        clients = [client for client in clients if not client.look(step)]
        step, pause = step + 1, pause - 1
        assert step < 1000


def test_a_row_pauses_while_nobody_takes_its_codes(decoder: Decoder) -> None:
    slow, fast = (Client(decoder, Request(text, 0, 1, MAX_CODES, MAX_CODES, 1)) for text in (4, 2))
    while not fast.row.is_ended:
        decoder.step()
        fast.codes += [fast.row.codes.popleft() for _ in range(len(fast.row.codes))]
    assert len(slow.row.codes) == MAX_UNTAKEN < len(fast.codes)
    decoder.leave(fast.row)
    step = 0
    while not slow.look(step):
        decoder.step()
        step += 1


@pytest.mark.parametrize("broken_row", [0, 1])
def test_a_prompt_that_is_not_finite_leaves_the_other_rows_alone(decoder: Decoder, broken_row: int) -> None:
    """Nor does what it left in the cache reach the next prompt of its row, a shorter one."""
    request = Request(2, 0, 1, MAX_CODES, MAX_CODES, 1)
    clients = [Client(decoder, request) for _ in range(broken_row)]
    broken = decoder.join(torch.full_like(prompt(4), torch.nan), 9, Sampling())
    clients.append(Client(decoder, request))
    decoder.step()
    assert not broken.finite.wait()
    decoder.leave(broken)
    clients.append(Client(decoder, Request(1, 0, 2, MAX_CODES, MAX_CODES, 1)))
    assert clients[-1].row.index == broken.index
    while clients:
        clients = [client for client in clients if not client.look(0)]
        decoder.step()


def test_ranking_a_few_logits_draws_what_ranking_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, size = 64, 8194
    rng = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(rows, size, generator=rng)
    seen = torch.rand(rows, size, generator=rng) < 0.01
    noise = torch.empty(rows, size).exponential_(generator=rng)
    for sampling in (Sampling(), Sampling(top_k=RANKED, top_p=0.95), Sampling(top_k=1), Sampling(do_sample=False)):
        assert sampling.ranks_few
        warp = Warp(torch.device("cpu"))
        warp.set(sampling)
        few = warp.truncate(logits, RANKED), warp.draw(logits, seen, noise, RANKED)
        with monkeypatch.context() as patch:
            patch.setattr(Sampling, "ranks_few", False)
            warp.set(sampling)
        assert torch.equal(few[0], warp.truncate(logits))
        assert torch.equal(few[1], warp.draw(logits, seen, noise))
    assert not Sampling(top_k=0).ranks_few
    assert not Sampling(top_k=RANKED + 1).ranks_few


def test_a_row_that_ranks_all_logits_changes_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over all logits may round otherwise than those over a few, here by far more."""
    cumsum = Tensor.cumsum

    def rough(self: Tensor, dim: int) -> Tensor:
        return cumsum(self, dim) + (0.2 if self.shape[dim] > RANKED else 0.0)

    monkeypatch.setattr(Tensor, "cumsum", rough)
    logits = 3 * torch.randn(4, 8194, generator=torch.Generator().manual_seed(5))
    warp = Warp(torch.device("cpu"), 4)
    warp.set(Sampling())
    alone = warp.truncate(logits, RANKED)
    warp.set(Sampling(top_k=0), slice(2, 3))
    together = warp.truncate(logits)
    assert [torch.equal(row, other) for row, other in zip(together, alone, strict=True)] == [True, True, False, True]


def test_only_steps_that_draw_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that only read codes, as behind the end of the last stream, are not: there is no time of zero rows."""
    monkeypatch.setitem(decoding.LAG, "cpu", 2)
    clock = iter(range(1000))
    monkeypatch.setattr("streaming_server.engines.torch.codes.time", SimpleNamespace(monotonic=lambda: next(clock)))
    writer = CodeWriter(gpt(), 6)
    writer.open(2)
    joined = writer.join(prompt(1), 3, Sampling())
    assert next(joined) is WAITING
    while writer.step():
        next(joined, None)
    assert writer.step_s == {1: 1.0}
    assert writer.expected_step_s(2) == 2.0
    joined.close()
    other = writer.join(prompt(1), MAX_CODES, Sampling())
    next(other)
    writer.step()
    other.close()
    writer.step()
    assert writer.expected_step_s(2) == 2.0


def test_a_stream_is_admitted_if_decoding_and_vocoding_keep_up() -> None:
    writer, thread = CodeWriter(gpt(), 6), VocoderThread(torch.device("cpu"), RATE_HZ)
    assert keeps_deadlines(writer, thread, 8, code_s=0.04)  # nothing is measured yet
    writer.step_s |= {1: 0.010, 2: 0.012}
    assert [keeps_deadlines(writer, thread, streams, code_s=0.04) for streams in (1, 2, 5, 7)] == [True] * 3 + [False]
    writer.step_s[2] = 0.5  # a busy moment: one row says that two take at most 0.02 s
    assert keeps_deadlines(writer, thread, 3, code_s=0.04)
    thread.load.add(0.4, 1.0)
    assert [keeps_deadlines(writer, thread, streams, code_s=0.04) for streams in (2, 3)] == [True, False]
    thread.close()
