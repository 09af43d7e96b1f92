"""Decoding steps that are compiled in parts: the same codes, one compilation for all blocks, and a fallback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from streaming_server.engines.indextts import checkpoint
from streaming_server.engines.torch.compiled import cache_folder, compile_steps
from streaming_server.engines.torch.decoding import Decoder
from streaming_server.engines.torch.gpt import CodeGpt, between
from streaming_server.engines.torch.sampling import Sampling
from tests.engines.indextts import tiny


@pytest.fixture
def gpt() -> CodeGpt:
    return checkpoint.build(tiny.SIZES, *tiny.random_states(tiny.SIZES)).gpt


@pytest.fixture(autouse=True)
def _no_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, str(tmp_path))


def decoded(gpt: CodeGpt, rows: int) -> tuple[list[list[int]], Tensor]:
    decoder = Decoder(gpt, rows, 60, 12)
    prompts = [gpt.started(gpt.words(torch.tensor(text))) for text in ([5, 9, 30], [44, 3], [7], [8, 8, 8])][:rows]
    codes = list(decoder.run(prompts, 12, Sampling(do_sample=False, repetition_penalty=1.0), [None] * rows))
    return codes, decoder.latents[:, : len(codes)]


def test_one_compilation_serves_all_blocks_and_all_batches(gpt: CodeGpt, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(gpt.gpt.h) > 1
    expected = [decoded(gpt, rows) for rows in (1, 2, 4)]
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    compile_steps(gpt.gpt)
    assert gpt.gpt.between is not between
    assert counter.frame_count == 2  # for one row, and for any number of them
    for rows, (codes, latents) in zip((1, 2, 4), expected, strict=True):
        found = decoded(gpt, rows)
        assert found[0] == codes
        assert torch.equal(found[1], latents)
    assert counter.frame_count == 2  # no request compiles


def failing(*_: Any, **__: Any) -> Callable[..., Any]:
    def compiled(*_: Tensor) -> None:
        raise RuntimeError("Cannot find a working triton installation.\nEither …")

    return compiled


def wrong(function: Callable[..., tuple[Tensor, Tensor]], **_: Any) -> Callable[..., Any]:
    return lambda *inputs: [result * 1.01 for result in function(*inputs)]


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [(failing, "RuntimeError: Cannot find a working triton installation."), (wrong, "its result is off by")],
)
def test_what_cannot_be_compiled_runs_as_it_is_and_is_one_warning(
    compiler: Any, reason: str, gpt: CodeGpt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, latents = decoded(gpt, 1)
    monkeypatch.setattr(torch, "compile", compiler)
    with caplog.at_level(logging.WARNING, "streaming_server"):
        compile_steps(gpt.gpt)
    [record] = caplog.records
    assert record.getMessage().startswith(f"torch.compile not used: {reason}")
    assert record.getMessage().endswith("; decoding steps run uncompiled")
    codes, found = decoded(gpt, 1)
    assert codes == expected
    assert torch.equal(found, latents)


def test_compiled_code_is_kept_for_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache/user")
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    assert cache_folder("torchinductor") == Path("/cache/user/streaming-server/torchinductor")
    monkeypatch.setenv("CACHE_DIRECTORY", "/cache/unit")  # as systemd sets it
    assert cache_folder("torchinductor") == Path("/cache/unit/torchinductor")
    monkeypatch.delenv("CACHE_DIRECTORY")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("torchinductor") == Path.home() / ".cache/streaming-server/torchinductor"
