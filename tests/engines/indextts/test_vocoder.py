"""Chunked vocoding equals vocoding at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming_server.engines.indextts.checkpoint import build
from streaming_server.engines.indextts.runtime import LookAhead, Runtime
from streaming_server.engines.indextts.stream import window_sizes
from streaming_server.engines.torch.windows import Window, cover, whole_lengths
from tests.engines.indextts import parity
from tests.engines.indextts.tiny import SIZES, random_states

LENGTH = 110


def some_latents(width: int, length: int = LENGTH) -> torch.Tensor:
    return 0.8 * torch.randn(length, width, generator=torch.Generator().manual_seed(5))


def chunked(
    runtime: Runtime, latents: torch.Tensor, speaker: Any, cuts: Sequence[int], ahead: LookAhead
) -> torch.Tensor:
    vocoder = runtime.chunked_vocoder(speaker, look_ahead=ahead)
    sizes = [end - start for start, end in zip([0, *cuts], [*cuts, len(latents)], strict=True)]
    return torch.cat([*(vocoder.push(piece) for piece in torch.split(latents, sizes)), vocoder.finish()])


@pytest.fixture(scope="module")
def whole(runtime: Runtime) -> torch.Tensor:
    return runtime.vocode(some_latents(64), parity.numbers()["speaker"])


SMALL_LENGTH = 60


@pytest.fixture(scope="module")
def small_whole() -> torch.Tensor:
    return build(SIZES, *random_states(SIZES)).vocode(some_latents(64, SMALL_LENGTH), torch.ones(32))


@pytest.fixture(scope="module", params=[False, True], ids=["any length", "recorded lengths"])
def small(request: pytest.FixtureRequest) -> Runtime:
    runtime = build(SIZES, *random_states(SIZES))
    if request.param:
        reach = runtime.vocoder.shape.reach
        runtime.record(window_sizes(reach, reach))
    return runtime


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(cuts=st.lists(st.integers(1, SMALL_LENGTH - 1), unique=True, max_size=8).map(sorted))
def test_exact_chunks_equal_the_whole(small: Runtime, small_whole: torch.Tensor, cuts: list[int]) -> None:
    samples = chunked(small, some_latents(64, SMALL_LENGTH), torch.ones(32), cuts, "exact")
    assert samples.shape == small_whole.shape
    assert (samples - small_whole).abs().max() < 1e-5


@pytest.mark.parametrize(("look_ahead", "tolerance"), [(16, 1e-4), (12, 1e-3), (8, 5e-3), (4, 2e-2), (1, 0.2)], ids=str)
def test_less_look_ahead_costs_what_is_said(
    runtime: Runtime, whole: torch.Tensor, look_ahead: int, tolerance: float
) -> None:
    samples = chunked(runtime, some_latents(64), parity.numbers()["speaker"], [60, 76], look_ahead)
    error = (samples - whole).abs().max()
    assert tolerance / 1000 < error < tolerance


def test_audio_comes_as_soon_as_the_look_ahead_allows(runtime: Runtime) -> None:
    vocoder = runtime.chunked_vocoder(parity.numbers()["speaker"], look_ahead=4)
    latents = some_latents(64)
    assert len(vocoder.push(latents[:4])) == 0
    assert len(vocoder.push(latents[4:8])) == 4 * runtime.samples_per_code
    assert len(vocoder.push(latents[8:9])) == runtime.samples_per_code
    assert len(vocoder.finish(latents[9:10])) == 5 * runtime.samples_per_code
    assert len(vocoder.finish()) == 0


def test_windows_with_fixed_buffers_give_the_same(whole: torch.Tensor) -> None:
    """What a GPU replays as graphs runs here over the same buffers."""
    runtime = parity.build_runtime()
    reach = runtime.vocoder.shape.reach
    assert reach == 31
    sizes = window_sizes(reach, reach)
    assert sizes == [35, 43, 59, 91, 94]
    runtime.record(sizes)
    samples = chunked(runtime, some_latents(64), parity.numbers()["speaker"], [35, 43, 59, 91], "exact")
    assert (samples - whole).abs().max() < 1e-5
    parity.check_greedy(runtime)
    parity.check_audio(runtime)


@pytest.mark.parametrize(
    ("windows", "reach", "longest"),
    [([35, 43, 59, 91, 94], 31, 320), ([8, 16, 32, 59, 67], 31, 320), ([50, 119, 188], 34, 1032), ([], 2, 60)],
    ids=str,
)
def test_any_whole_is_covered_by_recorded_windows(windows: list[int], reach: int, longest: int) -> None:
    recorded = sorted([*windows, *whole_lengths(windows, reach, longest)])
    assert len(recorded) < 100  # each takes time at the start, and memory
    for length in range(1, 2 * longest):
        found = cover(length, recorded, reach)
        assert [window.first for window in found] == [0, *(window.end for window in found[:-1])]
        assert found[-1].end == length
        for window in found:
            assert window.length in recorded
            assert 0 <= window.start < window.first + 1 <= window.end <= window.start + window.length <= length
            assert window.start == 0 or window.first - window.start >= reach
            end = window.start + window.length
            assert end == length or end - window.end >= reach
        if length <= longest:
            assert len(found) <= 3
            assert sum(window.length for window in found) < 2 * length


def test_without_a_window_wider_than_its_context_nothing_is_covered() -> None:
    assert cover(100, [8, 62], 31) == []
    assert cover(62, [8, 62], 31) == [Window(0, 62, 0, 62)]


def test_a_whole_in_recorded_windows_has_the_same_samples(whole: torch.Tensor) -> None:
    runtime = parity.build_runtime()
    runtime.record([66, 80, 94])
    lengths: list[int] = []
    runtime._windows._generator.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    samples = runtime.vocode(some_latents(64), parity.numbers()["speaker"])
    assert lengths == [94, 94]
    assert (samples - whole).abs().max() < 1e-5


def other_sizes() -> dict[str, Any]:
    """Nothing is as published: widths, counts, kernels, rates, the mel bands, no speaker in the stages."""
    config = copy.deepcopy(dict(SIZES))
    config["gpt"] |= {"model_dim": 48, "heads": 6, "layers": 3, "max_mel_tokens": 77, "max_text_tokens": 31}
    config["gpt"]["condition_module"] |= {
        "output_size": 24, "attention_heads": 3, "linear_units": 56, "num_blocks": 1, "perceiver_mult": 3,
    }  # fmt: skip
    config["bigvgan"] |= {
        "gpt_dim": 48, "num_mels": 80, "speaker_embedding_dim": 20, "upsample_initial_channel": 40,
        "upsample_rates": [5, 2, 3], "upsample_kernel_sizes": [11, 4, 7], "resblock_kernel_sizes": [5, 3],
        "resblock_dilation_sizes": [[1, 4], [1, 2]], "snake_logscale": False,
        "cond_d_vector_in_each_upsampling_layer": False,
    }  # fmt: skip
    return config


def test_other_sizes_work_alike() -> None:
    runtime = build(other_sizes(), *random_states(other_sizes()))
    assert runtime.samples_per_code == 30
    mel = runtime.log_mel(np.random.default_rng(1).standard_normal(9_000).astype(np.float32) / 10)
    assert mel.shape == (80, 36)
    conditioning, speaker = runtime.condition(mel), runtime.speaker(mel)
    assert conditioning.shape == (32, 48)
    decoded = list(runtime.decode(conditioning, range(3, 30), max_codes=500, do_sample=False))
    assert len(decoded) == 77
    latents = torch.stack([latent for _, latent in decoded])
    whole = runtime.vocode(latents, speaker)
    assert whole.shape == (77 * 30,)
    for step in (5, 20):
        samples = chunked(runtime, latents, speaker, range(step, 77, step), "exact")
        assert (samples - whole).abs().max() < 1e-5
