"""The recorded steps without a GPU: replayed by an emulator at small sizes, run over fake CUDA tensors at real ones."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from streaming_server.engines.indextts import checkpoint
from streaming_server.engines.indextts.stream import window_sizes
from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.checkpoint import assemble_gpt
from streaming_server.engines.indextts2.checkpoint import build as build2
from streaming_server.engines.indextts2.flow import Flow, Reference
from streaming_server.engines.torch import activation, decoding
from streaming_server.engines.torch.attention import SPAN
from streaming_server.engines.torch.decoding import BUCKET, Decoder
from streaming_server.engines.torch.gpt import CodeGpt
from streaming_server.engines.torch.graphs import Graphs
from streaming_server.engines.torch.pieces import result_of
from streaming_server.engines.torch.rows import Row
from streaming_server.engines.torch.sampling import RANKED, Sampling
from streaming_server.engines.torch.vocoder import Vocoder
from streaming_server.engines.torch.weights import Shapes
from streaming_server.engines.torch.windows import Windows
from tests.engines.indextts import parity, tiny
from tests.engines.indextts.weights import state
from tests.engines.indextts2 import parity as parity2
from tests.engines.indextts2 import published
from tests.engines.indextts2 import tiny as tiny2
from tests.support.graphs import EmulatedGraphs, FakeCudaGraphs, NotRecordableError, OnlyCuda, cuda_guard, substitute

CODES = 30
STEP_REPLAYS = CODES + CODES - 1
"""A draw for each code, and what follows each but the last."""
SETTINGS = [
    Sampling(),
    Sampling(do_sample=False),
    Sampling(top_k=0, top_p=1.0, temperature=1.4),
    Sampling(top_k=5, top_p=0.5, temperature=0.6, repetition_penalty=1.3),
    Sampling(do_sample=False, repetition_penalty=1.0),
]
TEXTS = [[5, 9, 30, 7], [44, 3, 90, 100, 23, 4, 19, 2, 70, 11, 12, 13]]
VERSIONS = ("1.5", "2.0", "2.5")


def small_gpt(version: str) -> CodeGpt:
    """With weights of its own; STOP never comes."""
    if version == "1.5":
        states, vocoder = tiny.random_states(tiny.SIZES)
        states["mel_head.bias"][tiny.SIZES["gpt"]["stop_mel_token"]] = -50
        return checkpoint.build(tiny.SIZES, states, vocoder).gpt
    config = tiny2.config_of(version)
    gpt = assemble_gpt(
        config, Shapes({k: torch.empty(v, device="meta") for k, v in tiny2.HINTS["gpt"].items()}), version == "2.5"
    )
    states = state({key: list(value.shape) for key, value in gpt.state_dict().items()})
    states["mel_head.bias"][config["gpt"]["stop_mel_token"]] = -50
    gpt.load_state_dict(states)
    return gpt.requires_grad_(requires_grad=False).eval()


def decoded(
    gpt: CodeGpt, graphs: type[Graphs], monkeypatch: pytest.MonkeyPatch, longest: int = 0
) -> list[tuple[list[int], Tensor]]:
    """Codes and latents of every setting by one decoder, one after the other; ``longest``: as for `Decoder.record`."""
    substitute(monkeypatch, graphs)
    decoder = Decoder(gpt, 1, 80, CODES + 1)
    decoder.record(longest)
    found = []
    for sampling, text in zip(SETTINGS, itertools.cycle(TEXTS), strict=False):
        rng = torch.Generator().manual_seed(len(text))
        codes = [code for (code,) in decoder.run([prompt(gpt, text)], CODES, sampling, [rng])]
        found.append((codes, decoder.latents[0, : len(codes)].clone()))
    return found


def prompt(gpt: CodeGpt, text: list[int]) -> Tensor:
    prefix = torch.randn(6, gpt.shape.width, generator=torch.Generator().manual_seed(3))
    return gpt.started(torch.cat([prefix, gpt.words(torch.tensor(text, dtype=torch.long))]))


@pytest.fixture(autouse=True)
def short_spans(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "fake" not in request.node.name:
        monkeypatch.setattr(decoding, "SPAN", 16)
        monkeypatch.setattr(decoding, "BUCKET", 8)


def same(pairs: list[tuple[list[int], Tensor]], others: list[tuple[list[int], Tensor]]) -> bool:
    return all(
        codes == other and torch.equal(latents, expected)
        for (codes, latents), (other, expected) in zip(pairs, others, strict=True)
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_replayed_decoding_gives_the_same_codes_in_every_span(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = small_gpt(version)
    eager = decoded(gpt, Graphs, monkeypatch)
    replays = EmulatedGraphs.replays
    replayed = decoded(gpt, EmulatedGraphs, monkeypatch)
    assert EmulatedGraphs.replays - replays == len(SETTINGS) * STEP_REPLAYS
    assert same(replayed, eager)
    assert len({tuple(codes) for codes, _ in eager}) == len(eager)


@pytest.mark.parametrize("version", VERSIONS)
def test_replayed_prompts_are_the_same(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of 13 and 21 inputs, padded to 16 and 24."""
    gpt = small_gpt(version)
    padded = decoded(gpt, Graphs, monkeypatch, longest=21)
    replays = EmulatedGraphs.replays
    assert same(decoded(gpt, EmulatedGraphs, monkeypatch, longest=21), padded)
    assert EmulatedGraphs.replays - replays == len(SETTINGS) * (1 + STEP_REPLAYS)
    for (codes, latents), (expected, exact) in zip(padded, decoded(gpt, Graphs, monkeypatch), strict=True):
        assert codes == expected
        assert torch.allclose(latents, exact, atol=1e-5)


def test_a_prompt_beyond_the_recorded_ones_is_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = small_gpt("1.5")
    substitute(monkeypatch, EmulatedGraphs)
    decoder = Decoder(gpt, 1, 80, CODES + 1)
    decoder.start([prompt(gpt, TEXTS[1])], Sampling())
    decoder.record(longest=9)
    replays = EmulatedGraphs.replays
    decoder.start([prompt(gpt, TEXTS[1])], Sampling())
    assert (decoder.used, EmulatedGraphs.replays - replays) == (21, 0)
    decoder.start([prompt(gpt, [])], Sampling())
    assert (decoder.used, EmulatedGraphs.replays - replays) == (9, 1)


def test_what_pads_a_prompt_that_is_not_finite_does_not_reach_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 17 inputs, padded to 24; the next one is shorter, and its codes come behind."""
    gpt = small_gpt("1.5")
    [(expected, _), *_] = decoded(gpt, Graphs, monkeypatch, longest=21)
    decoder = Decoder(gpt, 1, 80, CODES + 1)
    decoder.record(longest=21)
    broken = decoder.join(torch.full((17, gpt.shape.width), torch.nan), 9, Sampling())
    assert not broken.finite.wait()
    decoder.leave(broken)
    rng = torch.Generator().manual_seed(len(TEXTS[0]))
    assert [code for (code,) in decoder.run([prompt(gpt, TEXTS[0])], CODES, SETTINGS[0], [rng])] == expected


def test_a_position_that_python_counts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, forwards = small_gpt("1.5"), itertools.count()

    def codes(self: CodeGpt, codes: Tensor, _: Tensor) -> Tensor:
        x: Tensor = self.mel_embedding(codes) + self.mel_pos_embedding.emb.weight[next(forwards) % 7]
        return x[:, None]

    monkeypatch.setattr(CodeGpt, "codes", codes)
    eager = decoded(gpt, Graphs, monkeypatch)
    assert not same(decoded(gpt, EmulatedGraphs, monkeypatch), eager)


def test_a_buffer_that_is_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, join = small_gpt("1.5"), Decoder.join

    def replacing(self: Decoder, *arguments: Any) -> Row:
        self.noise = self.noise.clone()
        return join(self, *arguments)

    monkeypatch.setattr(Decoder, "join", replacing)
    eager = decoded(gpt, Graphs, monkeypatch)
    assert not same(decoded(gpt, EmulatedGraphs, monkeypatch), eager)


@pytest.mark.parametrize("step", [lambda x: x.add_(x.sum().item()), lambda x: x.exponential_()])
def test_a_step_that_reads_back_or_draws_is_refused(step: Callable[[Tensor], None]) -> None:
    x = torch.ones(3)
    with pytest.raises(NotRecordableError):
        EmulatedGraphs(x.device).record("a", partial(step, x))


@pytest.mark.parametrize("version", ["2.0", "2.5"])
def test_replayed_solves_are_the_same(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = parity2.build_runtime(version).acoustics.s2mel.estimator
    shape = estimator.shape

    def solved(graphs: type[Graphs]) -> list[Tensor]:
        substitute(monkeypatch, graphs)
        flow, random = Flow(estimator), torch.Generator().manual_seed(1)
        flow.record(20, 36)
        flow.record(20, 68)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random)

        return [
            result_of(flow.solve(
                Reference(normal(told, shape.bands), normal(told, shape.content_width), normal(shape.style_width)),
                normal(frames, shape.content_width), normal(frames, shape.bands), steps,
            ))
            for told, frames, steps in ((20, 36, 4), (13, 30, 3), (20, 60, 4), (7, 11, 2), (20, 36, 4))
        ]  # fmt: skip

    eager = solved(Graphs)
    replays = EmulatedGraphs.replays
    replayed = solved(EmulatedGraphs)
    assert EmulatedGraphs.replays - replays == 4 + 3 + 4 + 2 + 4
    assert all(torch.equal(found, expected) for found, expected in zip(replayed, eager, strict=True))


@pytest.mark.parametrize("version", ["1.5", "2.0"])
def test_replayed_windows_are_the_same(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vocoder = parity.build_runtime().vocoder if version == "1.5" else parity2.build_runtime(version).acoustics.vocoder
    widths = [vocoder.speaker_width] if isinstance(vocoder, Vocoder) else []

    def sounded(graphs: type[Graphs]) -> list[Tensor]:
        substitute(monkeypatch, graphs)
        windows, random = Windows(vocoder, *widths), torch.Generator().manual_seed(1)
        wide = 2 * vocoder.shape.reach + 4
        for length in (5, wide):
            windows.record(length)
        return [
            result_of(
                windows.vocode(
                    torch.randn(length, vocoder.shape.frame_width, generator=random),
                    *(torch.randn(width, generator=random) for width in widths),
                )
            )
            for length in (5, wide + 3, 5)
        ]

    replays = EmulatedGraphs.replays
    pairs = zip(sounded(EmulatedGraphs), sounded(Graphs), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)
    assert EmulatedGraphs.replays - replays == 1 + 2 + 1  # the second is run in two windows


# Real sizes, without memory or a GPU


def on_fake_cuda(module: nn.Module) -> None:
    """Give a module without memory fake CUDA tensors; inside `FakeTensorMode`."""

    def placed(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")

    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            child.register_parameter(name, nn.Parameter(placed(parameter), requires_grad=False))
        for name, buffer in child.named_buffers(recurse=False):
            child._buffers[name] = placed(buffer)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(decoding, "Readback", lambda _: None)
    substitute(monkeypatch, FakeCudaGraphs)
    monkeypatch.setattr(activation, "kernel_for", lambda _: alias_free_snake)
    FakeCudaGraphs.recorded.clear()
    with cuda_guard(), FakeTensorMode():
        yield


def alias_free_snake(*arguments: Tensor) -> Tensor:
    """The kernel, of which a fake device runs nothing but the shapes."""
    snake_kernel = pytest.importorskip("streaming_server.engines.torch.snake_kernel")
    result: Tensor = snake_kernel.alias_free_snake(*arguments)
    return result


def meta(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


LAYERS = 3
"""Of the GPT, instead of 24 equal ones; all other sizes are the real ones."""


@pytest.fixture(scope="module")
def real15() -> tuple[CodeGpt, Vocoder]:
    config = yaml.safe_load((parity.DATA / "config_1.5.yaml").read_text(encoding="utf-8"))
    config["gpt"]["layers"] = LAYERS
    states = [meta({k: v.shape for k, v in m.state_dict().items()}) for m in checkpoint.assemble(config, {}, {})]
    runtime = checkpoint.build(config, states[0], states[1], "meta", torch.float16)
    return runtime.gpt, runtime.vocoder


def test_fake_cuda_runs_the_steps_of_15_at_real_sizes(
    real15: tuple[CodeGpt, Vocoder], fake_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt, vocoder = real15
    on_fake_cuda(gpt)
    on_fake_cuda(vocoder)
    record_decoding(gpt)
    lengths = window_sizes(vocoder.shape.reach, vocoder.shape.reach)
    for kernel in (None, alias_free_snake):
        monkeypatch.setattr(activation, "kernel_for", lambda _, kernel=kernel: kernel)
        FakeCudaGraphs.recorded.clear()
        windows = Windows(vocoder, vocoder.speaker_width)
        for length in (lengths[0], lengths[-1]):
            windows.record(length)
        assert FakeCudaGraphs.recorded.keys() == {(lengths[0], 1), (lengths[-1], 1)}


def record_decoding(gpt: CodeGpt) -> None:
    """Steps by span (the first one, and one that is cut off) and by length, and prompts of two lengths."""
    for gpt.gpt.reads_lengths in (False, True):
        FakeCudaGraphs.recorded.clear()
        Decoder(gpt, 2, SPAN + 99, 16).record(longest=100)
        batches, spans = ((2,), (SPAN + 104,)) if gpt.gpt.reads_lengths else ((1, 2), (SPAN, SPAN + 104))
        assert FakeCudaGraphs.recorded.keys() == {
            *(("advance", rows, span) for rows in batches for span in spans),
            *(("draw", rows, ranked) for rows in batches for ranked in (RANKED, None)),
            *(("prompt", length) for length in (BUCKET, 2 * BUCKET)),
        }


def test_rows_that_come_and_go_wait_for_no_queued_step(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA copies ordinary memory of the host only after all that is queued before."""
    gpt = small_gpt("1.5")
    request.getfixturevalue("fake_cuda")
    on_fake_cuda(gpt)
    monkeypatch.setitem(decoding.LAG, "cuda", 9)  # no code is read
    decoder = Decoder(gpt, 3, 40, 8)
    prompt = torch.zeros(5, gpt.shape.width, device="cuda")
    with OnlyCuda() as checked:
        first = decoder.join(prompt, 8, Sampling(do_sample=False))
        decoder.step()
        decoder.join(prompt, 8, Sampling(do_sample=False))
        decoder.step()
        decoder.leave(first)
        decoder.step()
    assert checked.operators
    assert decoder.has_drawn


@pytest.mark.parametrize("version", ["2.0", "2.5"])
def test_fake_cuda_runs_the_steps_of_2_at_real_sizes(version: str, request: pytest.FixtureRequest) -> None:
    config = published.config(version)
    config["gpt"]["layers"] = LAYERS
    states: dict[str, Any] = {name: meta(shapes) for name, shapes in published.shapes(version).items()}
    layer = re.compile(r"gpt\.h\.(\d+)\.")
    states["gpt"] = {k: v for k, v in states["gpt"].items() if not (found := layer.match(k)) or int(found[1]) < LAYERS}
    rows = sum(config["emo_num"])
    states["feat1"], states["feat2"] = torch.empty(rows, 192), torch.empty(rows, 1280)
    runtime = build2(config, states, "meta", torch.float16)
    request.getfixturevalue("fake_cuda")
    for module in (runtime.gpt, runtime.acoustics.s2mel, runtime.acoustics.codec, runtime.acoustics.vocoder):
        on_fake_cuda(module)
    record_decoding(runtime.gpt)
    acoustics = Acoustics(runtime.acoustics.s2mel, runtime.acoustics.codec, runtime.acoustics.vocoder)
    acoustics.flow.record(430, 370)
    acoustics.windows.record(222)
    assert FakeCudaGraphs.recorded.keys() > {(430, 370, 1), (222, 1)}


def test_cudnn_computes_no_attention_beside_recorded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_, **__: None)
    cuda: Any = torch.backends.cuda
    cuda.enable_cudnn_sdp(True)
    try:
        Graphs(torch.device("cuda"))
        assert not cuda.cudnn_sdp_enabled()
    finally:
        cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3),
        lambda x: x.to("cpu", non_blocking=True),
    ],
)
def test_fake_cuda_refuses_what_no_graph_holds(step: Callable[[Tensor], Any], fake_cuda: None) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises((NotRecordableError, RuntimeError)):
        FakeCudaGraphs(x.device).record("a", partial(step, x))
