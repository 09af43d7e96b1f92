"""The runtimes of 2.0 and 2.5 agree with the reference values, and the comparisons can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streaming_server.engines.indextts2 import campplus, features
from streaming_server.engines.indextts2.gpt import Gpt20
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.torch import decoding
from tests.engines.indextts2 import parity
from tests.engines.indextts2.parity import Check

VERSIONS = ("2.0", "2.5")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("check", parity.CHECKS, ids=lambda check: check.__name__)
def test_the_published_numbers_come_out(runtimes: dict[str, Runtime], version: str, check: Check) -> None:
    check(runtimes[version])


# Each mutation below is a mistake that is easy to make; the check beside it must notice.


def fails(check: Check, runtime: Runtime) -> None:
    with pytest.raises(AssertionError):
        check(runtime)


@pytest.mark.parametrize("version", VERSIONS)
def test_wrong_mel_positions_are_noticed(
    runtimes: dict[str, Runtime], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(decoding.FIRST_CODE_POSITION, "aligned", 2)
    fails(parity.check_greedy, runtimes[version])


@pytest.mark.parametrize(
    ("owner", "norm", "check"),
    [
        ("gpt", "final_norm", parity.check_greedy),
        ("gpt.emo_conditioning_encoder", "after_norm", parity.check_emotions),
        ("gpt.emo_perceiver_encoder", "norm", parity.check_emotions),
        ("gpt", "emo_layer", parity.check_emotions),
        ("hearing.campplus.xvector", "out_nonlinear", parity.check_style),
        ("hearing.w2vbert.model.encoder.layers.2", "final_layer_norm", parity.check_hidden),
    ],
)
def test_a_missing_layer_is_noticed(
    runtimes: dict[str, Runtime], monkeypatch: pytest.MonkeyPatch, owner: str, norm: str, check: Check
) -> None:
    module: Any = runtimes["2.0"]
    for name in owner.split("."):
        module = getattr(module, name)
    monkeypatch.setitem(module._modules, norm, nn.Identity())
    fails(check, runtimes["2.0"])


def test_speed_rows_in_their_own_order_are_noticed(
    runtimes: dict[str, Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = runtimes["2.0"].gpt
    assert isinstance(gpt, Gpt20)
    monkeypatch.setitem(
        gpt.speed_emb._parameters, "weight", nn.Parameter(gpt.speed_emb.weight.flip(0), requires_grad=False)
    )
    fails(parity.check_prefix, runtimes["2.0"])


def test_another_language_is_noticed(runtimes: dict[str, Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes["2.5"], "language", 2)
    fails(parity.check_prefix, runtimes["2.5"])
    fails(parity.check_greedy, runtimes["2.5"])


def test_how_long_a_row_is_does_not_make_it_nearer(runtimes: dict[str, Runtime]) -> None:
    emotions = runtimes["2.0"].emotions
    lengths = torch.linspace(100, 1, emotions.styles.shape[0])[:, None]
    longer = replace(emotions, styles=emotions.styles * lengths)
    style = torch.from_numpy(parity.STYLE[0])
    assert longer.nearest(style).tolist() == parity.numbers("gpt_tiny")["emo_index"].tolist()


def test_groups_in_another_order_are_noticed(runtimes: dict[str, Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    emotions = runtimes["2.0"].emotions
    monkeypatch.setattr(runtimes["2.0"], "emotions", replace(emotions, sizes=emotions.sizes[::-1]))
    fails(parity.check_emotion_vector, runtimes["2.0"])


@pytest.mark.parametrize(
    ("constant", "value", "check"),
    [
        ("PADDING_VALUE", 0.0, parity.check_semantic_input),
        ("PRE_EMPHASIS", 0.95, parity.check_filter_banks),
        ("POVEY_POWER", 1.0, parity.check_filter_banks),
        ("LOWEST_HZ", 0.0, parity.check_filter_banks),
        ("MEL_FLOOR", 1e-3, parity.check_mel),
    ],
)
def test_a_wrong_constant_is_noticed(
    runtimes: dict[str, Runtime], monkeypatch: pytest.MonkeyPatch, constant: str, value: float, check: Check
) -> None:
    monkeypatch.setattr(features, constant, value)
    fails(check, runtimes["2.0"])


def test_a_mel_of_equal_heights_is_noticed(runtimes: dict[str, Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    filters = features.slaney_filters
    monkeypatch.setattr(features, "slaney_filters", lambda shape: filters(shape) / filters(shape).amax(1, keepdim=True))
    fails(parity.check_mel, runtimes["2.0"])


def test_a_padded_frame_that_is_heard_is_noticed(runtimes: dict[str, Runtime]) -> None:
    odd = parity.numbers("w2vbert_tiny")["odd_feat"]
    with pytest.raises(AssertionError):
        parity.close(runtimes["2.0"].hidden(odd)[3], parity.numbers("w2vbert_tiny")["odd_hidden_3"], 5e-5)


def test_a_biased_deviation_is_noticed(runtimes: dict[str, Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    deviation: Callable[..., Tensor] = Tensor.std
    monkeypatch.setattr(Tensor, "std", lambda x, dim: deviation(x, dim, correction=0))
    fails(parity.check_style, runtimes["2.0"])


def test_surroundings_of_another_length_are_noticed(
    runtimes: dict[str, Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campplus, "CONTEXT_FRAMES", 50)
    fails(parity.check_style, runtimes["2.0"])
