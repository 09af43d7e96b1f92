"""The published numbers, and one check for each: it raises AssertionError where a runtime's result is off.

Checks are functions so that a mutation test can see the very same one fail.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streaming_server.engines.indextts.checkpoint import build
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.torch.decoding import PositionRule
from tests.engines.indextts.weights import state

DATA = Path(__file__).parents[2] / "data" / "indextts15"
CODES = 40


@cache
def config() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / "parity.json").read_text())
    return content


@cache
def numbers() -> dict[str, npt.NDArray[Any]]:
    with np.load(DATA / "parity.npz") as archive:
        return dict(archive)


@cache
def states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    shapes = config()["shapes"]
    gpt = state(shapes["gpt"])
    gpt["mel_head.bias"][config()["gpt"]["stop_mel_token"]] = -50
    return gpt, state(shapes["bigvgan"])


def build_runtime(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Runtime:
    return build(config(), *states(), device, dtype)


def close(actual: torch.Tensor, expected: str, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(np.asarray(actual.cpu()), numbers()[expected], rtol=0, atol=tolerance)


def check_mel(runtime: Runtime) -> None:
    close(runtime.log_mel(numbers()["wav"]), "mel")


def check_resampling(runtime: Runtime) -> None:
    for rate in (16_000, 22_050, 44_100, 48_000):
        close(runtime.resample(numbers()["wav"][:4000], rate), f"resample_{rate}", 1e-5)


def check_conditioning(runtime: Runtime) -> None:
    close(runtime.condition(numbers()["mel"]), "cond")


def check_speaker(runtime: Runtime) -> None:
    close(runtime.speaker(numbers()["mel"]), "speaker")


def check_greedy(runtime: Runtime, positions: PositionRule = "aligned", name: str = "aligned") -> None:
    decoded = list(
        runtime.decode(
            conditioning=numbers()["cond"], text_ids=numbers()["text"], max_codes=CODES, do_sample=False, top_p=0.8,
            top_k=30, temperature=1.0, repetition_penalty=10.0, positions=positions,
        )
    )  # fmt: skip
    assert [code for code, _ in decoded] == numbers()[f"codes_greedy_{name}"].tolist()
    close(torch.stack([latent for _, latent in decoded]), f"latents_greedy_{name}")


def check_greedy_at_cached_positions(runtime: Runtime) -> None:
    check_greedy(runtime, "cached", "upstream_kv")


def check_sampled(runtime: Runtime) -> None:
    torch.manual_seed(11)
    decoded = runtime.decode(numbers()["cond"], numbers()["text"], CODES, True, 0.8, 30, 1.0, 10.0)
    assert [code for code, _ in decoded] == numbers()["codes_sample_aligned_seed11"].tolist()


def check_audio(runtime: Runtime) -> None:
    samples = runtime.vocode(numbers()["latents_greedy_aligned"], numbers()["speaker"])
    assert len(samples) == numbers()["wav_out_len"]
    close(samples[:4096], "wav_out_head")
    close(samples[-4096:], "wav_out_tail")
    close(samples[::17], "wav_out_every_17")


CHECKS: list[Callable[[Runtime], None]] = [
    check_mel,
    check_resampling,
    check_conditioning,
    check_speaker,
    check_greedy,
    check_greedy_at_cached_positions,
    check_sampled,
    check_audio,
]
