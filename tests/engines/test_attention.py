"""Attention that reads the lengths of rows on the device, with a kernel of torch's documented semantics on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from streaming_server.engines.torch.attention import SPAN, difference, masked, reads_lengths, up_to
from streaming_server.engines.torch.decoding import Decoder
from streaming_server.engines.torch.gpt import CodeGpt
from streaming_server.engines.torch.sampling import Sampling
from tests.engines.indextts import parity
from tests.support.attention import kernel
from tests.support.graphs import EmulatedGraphs, substitute

Kernel = Callable[..., None]


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn_out", kernel)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_each_row_attends_to_what_it_has_filled(rows: int) -> None:
    rng = torch.Generator().manual_seed(rows)
    heads, slots, width = 4, 30, 8
    layers = torch.randn(2, 2, 3, heads, slots, width, generator=rng)
    cache = layers[1, :, :rows]
    projected = torch.randn(rows, 1, 3, heads, width, generator=rng)
    queries = projected.permute(2, 0, 3, 1, 4)[0]
    slot = torch.tensor([[4], [29], [0]])[:rows]
    expected = masked(slot, torch.arange(slots), torch.float32)(queries, cache)
    torch.testing.assert_close(up_to(slot, heads, slots)(queries, cache), expected)
    for row in range(rows):
        cache[:, row, :, int(slot[row]) + 1 :] = torch.nan
    torch.testing.assert_close(up_to(slot, heads, slots)(queries, cache), expected)


def decoded(gpt: CodeGpt, rows: int) -> list[list[int]]:
    """Codes of prompts of different lengths by one decoder."""
    decoder = Decoder(gpt, rows, 120, 60)
    decoder.record(longest=40)
    condition = torch.from_numpy(parity.numbers()["cond"])
    texts = ([5, 9, 30, 7], [44, 3], [8, 8, 61, 100, 23, 4])[:rows]
    prompts = [gpt.started(torch.cat([condition, gpt.words(torch.tensor(text))])) for text in texts]
    rngs = [torch.Generator().manual_seed(row) for row in range(rows)]
    return list(decoder.run(prompts, 60, Sampling(), rngs))


@pytest.mark.parametrize("rows", [1, 3])
def test_one_recorded_step_decodes_the_same_codes_at_all_lengths(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = parity.build_runtime().gpt
    expected = decoded(gpt, rows)
    assert len(expected) > 40
    substitute(monkeypatch, EmulatedGraphs)
    recorded: set[Any] = set()
    record = EmulatedGraphs.record

    def noted(self: EmulatedGraphs, key: Any, function: Callable[[], None], **options: Any) -> None:
        recorded.add(key)
        record(self, key, function, **options)

    monkeypatch.setattr(EmulatedGraphs, "record", noted)
    monkeypatch.setattr("streaming_server.engines.torch.decoding.SPAN", 16)
    gpt.gpt.reads_lengths = True
    assert decoded(gpt, rows) == expected
    assert {key for key in recorded if key[0] == "advance"} == {("advance", rows, 120)}


def test_a_row_that_is_free_costs_one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[int]] = []

    def noted(*arguments: Any, seqused_k: Tensor) -> None:
        read.append(seqused_k.tolist())
        kernel(*arguments, seqused_k=seqused_k)

    monkeypatch.setattr(varlen, "varlen_attn_out", noted)
    gpt = parity.build_runtime().gpt
    gpt.gpt.reads_lengths = True
    decoder = Decoder(gpt, 3, 60, 20)
    prompt = torch.randn(10, gpt.shape.width, generator=torch.Generator().manual_seed(1))
    first, _ = decoder.join(prompt[:8], 20, Sampling()), decoder.join(prompt, 20, Sampling())
    for _ in range(3):
        decoder.step()
    assert read[-1] == [10, 12, 1]
    decoder.leave(first)
    decoder.step()
    assert read[-1] == [1, 13, 1]


HALF = torch.zeros((), dtype=torch.float16)
CUDA = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float16)


def test_the_kernel_is_used_where_it_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "streaming_server.engines.torch.attention.difference", lambda heads, width, _: difference(heads, width, HALF)
    )
    with caplog.at_level(logging.WARNING, "streaming_server"):
        assert reads_lengths(4, 16, CUDA)  # type: ignore[arg-type]
        assert not reads_lengths(4, 16, HALF)  # on the CPU
        assert not reads_lengths(4, 16, SimpleNamespace(device=CUDA.device, dtype=torch.float32))  # type: ignore[arg-type]
    assert not caplog.records


def one_slot_short(*arguments: Any, seqused_k: Tensor) -> None:
    kernel(*arguments, seqused_k=seqused_k - 1)


def all_slots(*arguments: Any, seqused_k: Tensor) -> None:
    kernel(*arguments, seqused_k=torch.full_like(seqused_k, arguments[-1]))


def weights_of_zero(*arguments: Any, seqused_k: Tensor) -> None:
    """Reads the values behind the last slot too, and multiplies them by 0."""
    kernel(*arguments, seqused_k=seqused_k)
    arguments[0].add_(0 * arguments[3].sum())


def missing(*_: Any, **__: Any) -> None:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nException raised from …")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (one_slot_short, "its result is off by "),
        (all_slots, "its result is off by "),
        (weights_of_zero, "its result is off by nan"),
        (missing, "RuntimeError: FlashAttention only supports Ampere GPUs or newer.;"),
    ],
)
def test_a_kernel_that_fails_or_computes_something_else_is_one_warning(
    broken: Kernel, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn_out", broken)
    monkeypatch.setattr(
        "streaming_server.engines.torch.attention.difference", lambda heads, width, _: difference(heads, width, HALF)
    )
    with caplog.at_level(logging.WARNING, "streaming_server"):
        assert not reads_lengths(4, 16, CUDA)  # type: ignore[arg-type]
    [record] = caplog.records
    assert record.getMessage().startswith(f"FlashAttention not used: {reason}")
    assert record.getMessage().endswith(f"; decoding steps are recorded for every {SPAN} slots")
