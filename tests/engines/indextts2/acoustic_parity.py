"""The published numbers from codes to sound, and one check for each: it raises AssertionError where a stage is off."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.assembly import assemble_acoustics, unneeded
from streaming_server.engines.indextts2.flow import Reference
from streaming_server.engines.torch.weights import fold_snakes, fold_weight_norm, load
from tests.engines.indextts import parity as parity15
from tests.engines.indextts.weights import state

DATA = parity15.DATA.parent / "indextts2"
STEPS = (25, 8)
TOLERANCE = 1e-5


@cache
def config() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / "tiny2.json").read_text())
    return content


@cache
def shapes() -> dict[str, dict[str, list[int]]]:
    content: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress((DATA / "tiny2_shapes.json.gz").read_bytes()))
    return content


@cache
def numbers() -> dict[str, npt.NDArray[Any]]:
    with np.load(DATA / "s2mel_tiny.npz") as archive:
        return dict(archive)


def normal(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    """What the fixtures were made from."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def build(enhanced: bool, dtype: torch.dtype = torch.float32) -> Acoustics:
    """The stages of 2.0 or, ``enhanced``, of 2.5 with the weights that the fixtures were made with."""
    states = {
        "s2mel": fold_weight_norm(state(shapes()["s2mel"]), "s2mel"),
        "codec": fold_weight_norm(state(shapes()["codec_25" if enhanced else "repcodec_20"]), "codec"),
        "bigvgan": fold_snakes(fold_weight_norm(state(shapes()["bigvgan"]), "bigvgan"), log_scale=True),
    }
    with torch.device("meta"):
        s2mel, codec, vocoder = assemble_acoustics(config(), states, enhanced)
    for module, name in ((s2mel, "s2mel"), (codec, "codec"), (vocoder, "bigvgan")):
        load(module, states[name], name, unneeded(config(), enhanced, name))
        module.requires_grad_(requires_grad=False).eval()
    s2mel.estimator.to(dtype)
    vocoder.to(dtype)
    return Acoustics(s2mel, codec, vocoder)


def close(actual: torch.Tensor, expected: str, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(np.asarray(actual), numbers()[expected], rtol=0, atol=tolerance)


def reference() -> Reference:
    mel, mu, style = normal(42, 80, 30), normal(43, 30, 64), normal(23, 192)
    return Reference(torch.from_numpy(mel).mT, torch.from_numpy(mu), torch.from_numpy(style))


def noise() -> npt.NDArray[np.float32]:
    return normal(44, 80, int(numbers()["T"]))


def check_codes(old: Acoustics, new: Acoustics) -> None:
    codes, embedding = old.quantize(normal(31, 22, 1024))
    assert codes.tolist() == numbers()["rep_codes"].tolist()
    close(embedding[:, :64], "rep_emb_head")


def check_content(old: Acoustics, new: Acoustics) -> None:
    codes = numbers()["codes"]
    close(old.vq2emb(codes)[:, :64], "vq2emb_head")
    close(old.gpt_layer(normal(41, 25, 1280))[:, :64], "gpt_layer_head")
    close(new.decode_codes(codes)[:, :64], "dec25_head")


def check_conditions(old: Acoustics, new: Acoustics) -> None:
    codes = numbers()["codes"]
    close(old.mu(codes, normal(41, 25, 1280)), "mu20")
    close(new.mu(codes), "mu25")
    close(new.mu(codes, duration_factor=1.3), "mu25_dur13")


def check_direction(old: Acoustics, new: Acoustics) -> None:
    told = reference()
    mu = torch.cat([told.mu, torch.from_numpy(numbers()["mu20"])])
    close(old.dit_step(noise(), mu, told.mel.mT, told.style, 0.4), "dit_step_t04")


def check_solves(old: Acoustics, new: Acoustics) -> None:
    for steps in STEPS:
        close(old.cfm(numbers()["mu20"], reference(), noise()[:, 30:], steps), f"cfm_{steps}")


def check_sound(old: Acoustics, new: Acoustics) -> None:
    samples = old.vocode(normal(45, 80, 40))
    close(samples[:2048], "wav_head")
    close(samples[-2048:], "wav_tail")
    close(samples[::7], "wav_every_7")


CHECKS: list[Callable[[Acoustics, Acoustics], None]] = [
    check_codes,
    check_content,
    check_conditions,
    check_direction,
    check_solves,
    check_sound,
]
