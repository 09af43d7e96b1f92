"""The acoustic stages agree with the reference values, and the comparisons can fail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from streaming_server.engines.indextts2 import acoustics as stages
from streaming_server.engines.indextts2 import codec, dit, flow, regulator, wavenet
from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.assembly import assemble_acoustics, unneeded
from streaming_server.engines.indextts2.chunks import SEGMENT, MelStream, Pace
from streaming_server.engines.indextts2.flow import Noise, Reference
from streaming_server.engines.indextts2.synthesis import Synthesis
from streaming_server.engines.torch.pieces import result_of
from streaming_server.engines.torch.weights import Misfit, load
from streaming_server.errors import EngineUnavailable
from tests.engines.indextts.weights import state
from tests.engines.indextts2 import acoustic_parity as parity
from tests.engines.indextts2 import published

Both = tuple[Acoustics, Acoustics]
Check = Callable[[Acoustics, Acoustics], None]


@pytest.fixture(scope="module")
def both() -> Both:
    """2.0 and 2.5."""
    return parity.build(enhanced=False), parity.build(enhanced=True)


@pytest.mark.parametrize("check", parity.CHECKS, ids=lambda check: check.__name__)
def test_the_published_numbers_come_out(both: Both, check: Check) -> None:
    check(*both)


def test_half_precision_stays_near(both: Both) -> None:
    """The state of the solve is float32 all the same: the error does not grow with the steps."""
    rough = parity.build(enhanced=False, dtype=torch.bfloat16)
    for steps in parity.STEPS:
        mel = rough.cfm(parity.numbers()["mu20"], parity.reference(), parity.noise()[:, 30:], steps)
        expected = torch.from_numpy(parity.numbers()[f"cfm_{steps}"])
        error = float((mel - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        assert 1e-4 < error < 0.03
    parity.close(rough.mu(parity.numbers()["codes"], parity.normal(41, 25, 1280)), "mu20")


# Each mutation below is a mistake that is easy to make; the check beside it must notice.


def fails(check: Check, both: Both) -> None:
    with pytest.raises(AssertionError):
        check(*both)


@pytest.mark.parametrize(
    ("owner", "name", "value", "check"),
    [
        (flow, "GUIDANCE", 0.69, parity.check_solves),
        (dit, "ROTATION_BASE", 9_000.0, parity.check_direction),
        (dit, "TIME_SCALE", 1.0, parity.check_direction),
        (dit, "NORM_EPSILON", 1e-3, parity.check_direction),
        (dit, "FINAL_EPSILON", 1e-3, parity.check_direction),
        (codec, "NORM_EPSILON", 1e-3, parity.check_content),
        (stages, "FRAMES_PER_CONTENT", 1.7, parity.check_conditions),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_constant_is_noticed(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: float, check: Check
) -> None:
    monkeypatch.setattr(owner, name, value)
    fails(check, (parity.build(enhanced=False), parity.build(enhanced=True)))


def test_a_null_branch_that_is_told_anything_is_noticed(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dit.Estimator.rows
    parts: list[Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = [
        lambda prompt, mu, style: (prompt[:1].expand_as(prompt), mu, style),
        lambda prompt, mu, style: (prompt, mu[:1].expand_as(mu), style),
        lambda prompt, mu, style: (prompt, mu, style[:1].expand_as(style)),
    ]
    for told in parts:
        with monkeypatch.context() as patch:
            patch.setattr(dit.Estimator, "rows", lambda self, *given, told=told: rows(self, *told(*given)))
            fails(parity.check_solves, both)


def test_skips_in_another_order_are_noticed(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_out(self: dit.Transformer, x: Tensor, moments: Tensor, span: dit.Span) -> Tensor:
        skips: list[Tensor] = []
        for index, block in enumerate(self.layers):
            x = block(x, skips.pop(0) if index > self.middle else None, moments[:, 2 * index : 2 * index + 2], span, 0)
            skips += [x] if index < self.middle else []
        return dit.normed(x, moments[:, -1])

    monkeypatch.setattr(dit.Transformer, "forward", first_out)
    fails(parity.check_direction, both)


def test_edges_that_are_not_reflected_are_noticed(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def repeated(length: int, first: int, end: int, margin: int) -> Tensor:
        return torch.arange(-margin, length + margin).clamp(first, end - 1)

    for module in (stages, flow):
        monkeypatch.setattr(module, "mirrored", repeated)
    fails(parity.check_direction, both)
    fails(parity.check_solves, both)


def test_last_layers_trimmed_too_far_are_noticed(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wavenet.WaveNet, "reach", 3)
    fails(parity.check_solves, both)


def test_swapped_gates_are_noticed(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "tanh", torch.sigmoid)
    monkeypatch.setattr(Tensor, "sigmoid", Tensor.tanh)
    fails(parity.check_direction, both)


def test_a_code_by_product_instead_of_angle_is_noticed(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "normalize", lambda x, dim: x)
    fails(parity.check_codes, both)


def test_norms_by_channel_are_noticed(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    group_norm = F.group_norm
    monkeypatch.setattr(F, "group_norm", lambda x, groups, *rest: group_norm(x, x.shape[1], *rest))
    fails(parity.check_conditions, both)


def test_latents_left_out_are_noticed(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.Acoustics, "gpt_layer", lambda self, latents: 0)
    fails(parity.check_conditions, both)


def test_codes_repeated_as_a_whole_are_noticed(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "repeat_interleave", lambda x, times, dim: torch.cat(times * [x], dim))
    fails(parity.check_content, both)


@contextmanager
def bound_by_tanh(vocoder: Any) -> Iterator[None]:
    vocoder.bound = "tanh"
    yield
    vocoder.bound = "clamp"


def test_a_bent_waveform_is_noticed(both: Both) -> None:
    with bound_by_tanh(both[0].vocoder):
        fails(parity.check_sound, both)


# What streaming needs of the stages


def test_as_many_frames_as_the_vocoder_reaches_make_it_exact(both: Both) -> None:
    reach = both[0].vocoder.shape.reach
    assert 32 <= reach <= 34  # 32 were measured to do
    mel = torch.from_numpy(parity.normal(3, 100, 80))
    middle = both[0].vocode(mel.mT)[40 * 256 : 60 * 256]
    for around, exact in ((reach, True), (8, False)):
        part = both[0].vocode(mel[40 - around : 60 + around].mT)[around * 256 : (around + 20) * 256]
        assert ((part - middle).abs().max() < 1e-6) == exact


def test_as_many_codes_as_the_codec_reaches_make_it_exact(both: Both) -> None:
    new = both[1]
    codes = torch.arange(60) * 7 % 64
    whole = new.decode_codes(codes)[:40]
    errors = [float((new.decode_codes(codes[: 20 + ahead])[:40] - whole).abs().max()) for ahead in (0, 4, 8, 13)]
    assert new.codec.shape.reach == 12  # and one more for the convolution at twice the rate
    assert errors == sorted(errors, reverse=True)
    assert errors[2] > 1e-6
    assert errors[3] < 1e-6


def test_pooled_statistics_bring_a_beginning_nearer(both: Both) -> None:
    """As the facts say: without them conditions of a short beginning are off by tens of percent."""
    old = both[0]
    codes, latents = torch.arange(150) * 7 % 64, torch.from_numpy(parity.normal(5, 150, 1280))
    latents[:25] *= 0.1  # a quiet beginning skews the statistics
    whole = old.mu(codes, latents)
    earlier = old.statistics(codes.flip(0), latents.flip(0))

    def distance(pooled: Tensor | None) -> float:
        beginning = old.mu(codes[:25], latents[:25], pooled=pooled)[:36]
        return float((beginning - whole[:36]).square().mean().sqrt() / whole[:36].square().mean().sqrt())

    assert distance(earlier) < 0.5 * distance(None)
    assert regulator.POOLED_WEIGHT > 0


def test_a_beginning_is_stretched_like_the_whole(both: Both) -> None:
    """The rate of a whole is rounded with its length; that of 23 codes would put other codes into many frames."""
    old = both[0]
    codes, latents = torch.arange(200) * 7 % 64, torch.from_numpy(parity.normal(5, 200, 1280))
    whole, pooled = old.mu(codes, latents)[:30], old.statistics(codes, latents)
    right, wrong = (
        float((old.mu(codes[:23], latents[:23], pooled=pooled, goes_on=goes_on)[:30] - whole).abs().mean())
        for goes_on in (True, False)
    )
    assert right < 0.2 * wrong


def test_statistics_pooled_with_the_same_change_nothing(both: Both) -> None:
    codes = parity.numbers()["codes"]
    new = both[1]
    parity.close(new.mu(codes, pooled=new.statistics(codes)), "mu25")


def test_a_reference_may_be_cut_to_its_last_frames(both: Both) -> None:
    mel, features, style = parity.normal(42, 80, 30), parity.normal(31, 22, 1024), parity.normal(23, 192)
    for acoustics in both:
        whole = acoustics.reference(features, mel, style)
        assert whole.mel.shape == (30, 80)
        cut = acoustics.reference(features, mel, style, frames=12)
        assert torch.equal(cut.mel, whole.mel[-12:])
        assert torch.equal(cut.mu, whole.mu[-12:])
        assert torch.equal(acoustics.reference(features, mel, style, frames=99).mel, whole.mel)


def other_sizes() -> dict[str, Any]:
    """Nothing is as published: widths, depths (an even one), heads, kernels, dilations, bands, rates."""
    config = copy.deepcopy(parity.config())
    config["s2mel"]["length_regulator"] |= {"channels": 40, "in_channels": 56, "sampling_ratios": [1, 1]}
    config["s2mel"]["style_encoder"]["dim"] = 20
    config["s2mel"]["DiT"] |= {"hidden_dim": 48, "num_heads": 6, "depth": 4, "in_channels": 32, "content_dim": 40}
    config["s2mel"]["wavenet"] |= {"hidden_dim": 48, "num_layers": 2, "kernel_size": 3, "dilation_rate": 2}
    config["semantic_codec"] = {
        "codebook_size": 33, "hidden_size": 56, "codebook_dim": 5,
        "vocos_dim": 24, "vocos_intermediate_dim": 40, "vocos_num_layers": 2,
    }  # fmt: skip
    config["bigvgan"] |= {
        "num_mels": 32, "upsample_initial_channel": 24, "upsample_rates": [5, 3], "upsample_kernel_sizes": [11, 7],
        "resblock_kernel_sizes": [5, 3], "resblock_dilation_sizes": [[1, 4], [1, 2]], "use_bias_at_final": True,
    }  # fmt: skip
    return config


@pytest.mark.parametrize("enhanced", [False, True], ids=["2.0", "2.5"])
def test_other_sizes_work_alike(enhanced: bool) -> None:
    inner = {"cfm.estimator.transformer.layers.0.feed_forward.w1.weight": torch.empty(72, 48)}
    shapes = {"gpt_layer.0.weight": (17, 30), "gpt_layer.1.weight": (9, 17), "gpt_layer.2.weight": (56, 9)}
    latents = {key: torch.empty(shape) for key, shape in shapes.items()}
    modules = assemble_acoustics(other_sizes(), {"s2mel": inner | latents, "codec": {}}, enhanced)
    for module in modules:
        module.load_state_dict(state({key: list(value.shape) for key, value in module.state_dict().items()}))
        module.requires_grad_(requires_grad=False)
    acoustics = Acoustics(*modules)
    reference = acoustics.reference(parity.normal(1, 30, 56), parity.normal(2, 32, 50), parity.normal(3, 20))
    codes, beside = torch.arange(60) % 33, None if enhanced else torch.from_numpy(parity.normal(4, 60, 30))
    paces = SEGMENT, Pace((500,)), Pace((20,), code_look_ahead=2)
    whole, once, chunks = (
        result_of(Synthesis(acoustics, MelStream(acoustics, reference, pace, 2, 1)).finish(codes, beside))
        for pace in paces
    )
    assert whole.shape == (acoustics.frames(60) * 15,)
    assert (once - whole).abs().max() < 1e-6
    assert chunks.shape == whole.shape
    mu = acoustics.mu(codes, beside)
    told = Reference(reference.mel, reference.mu, reference.style)
    noise = Noise(32, 1)(0, len(mu))
    untrimmed = euler(acoustics, told, mu, noise)
    assert (result_of(acoustics.flow.solve(told, mu, noise, 2)) - untrimmed).abs().max() < 1e-5


def euler(acoustics: Acoustics, reference: Reference, mu: Tensor, noise: Tensor) -> Tensor:
    """Two steps by the book, over all rows and one direction at a time."""
    prompt = len(reference.mel)
    nothing = Reference(0 * reference.mel, 0 * reference.mu, 0 * reference.style)
    x = torch.cat([torch.zeros_like(reference.mel), noise])
    for t in (0.0, 0.5):
        told, untold = (
            acoustics.dit_step(x.mT, torch.cat([by.mu, target]), by.mel.mT, by.style, t).mT
            for by, target in ((reference, mu), (nothing, 0 * mu))
        )
        x = x + 0.5 * (1.7 * told - 0.7 * untold)
        x[:prompt] = 0
    return x[prompt:]


# Real sizes, and what does not fit


@pytest.mark.parametrize("version", published.VERSIONS)
def test_the_real_files_fit_the_real_sizes(version: str) -> None:
    config, enhanced = published.config(version), version == "2.5"
    names = ("s2mel", "codec", "bigvgan")
    states = {name: without_norms(published.shapes(version)[name]) for name in names}
    with torch.device("meta"):
        modules = assemble_acoustics(config, states, enhanced)
    for module, name in zip(modules, names, strict=True):
        load(module, states[name], name, unneeded(config, enhanced, name))
    s2mel, codec_module, vocoder = modules
    assert count(vocoder) == pytest.approx(112.2e6, abs=0.3e6)  # without the norms that are folded away
    assert count(s2mel.length_regulator) == pytest.approx(4.99e6 - 2049 * 512, abs=0.01e6)  # without its own embedding
    assert codec_module.shape.reach == 39
    assert s2mel.estimator.wavenet.reach == 16
    key = "cfm.estimator.transformer.layers.12.skip_in_linear.weight"
    del states["s2mel"][key]
    with pytest.raises(Misfit, match=f"the key {key} is missing"):
        load(s2mel, states["s2mel"], "s2mel.pth", unneeded(config, enhanced, "s2mel"))


def without_norms(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {
        key.removesuffix("_v"): torch.empty(shape, device="meta")
        for key, shape in shapes.items()
        if not key.endswith(("weight_g", ".filter"))
    }


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("DiT", "is_causal"), True),
        (("DiT", "final_layer_type"), "mlp"),
        (("length_regulator", "sampling_ratios"), [1, 2]),
    ],
)
def test_a_setting_that_is_not_known_is_refused(path: tuple[str, str], value: object) -> None:
    config = copy.deepcopy(parity.config())
    config["s2mel"][path[0]][path[1]] = value
    with pytest.raises(EngineUnavailable, match=rf"s2mel\.{path[0]}\.{path[1]}: .*this runtime supports only"):
        assemble_acoustics(config, {"s2mel": {}, "codec": {}}, enhanced=False)


def test_no_codes_make_no_sound_and_no_error(both: Both) -> None:
    for acoustics in both:
        nothing = np.empty(0, np.int64)
        beside = None if acoustics.decodes_ahead else np.empty((0, 1280), np.float32)
        speech = Synthesis(acoustics, MelStream(acoustics, parity.reference(), SEGMENT, 2, 1))
        assert len(result_of(speech.finish(nothing, beside))) == 0
