"""The published numbers of 2.0 and 2.5, and one check for each stage: AssertionError where a runtime's result is off.

Checks are functions so that a mutation test can see the very same one fail. They go through `build`, by the names that
a runtime offers its stages under.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streaming_server.engines.indextts2.checkpoint import build
from streaming_server.engines.indextts2.runtime import Runtime
from tests.engines.indextts.weights import state, weight
from tests.engines.indextts2.acoustic_parity import DATA, config, noise, normal, shapes

CODES = 40
LOGARITHMS = 5e-4
EVERY = 6
"""The features' fixtures keep every sixth frame."""

Check = Callable[[Runtime], None]


@cache
def numbers(name: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(DATA / f"{name}.npz") as archive:
        return dict(archive)


@cache
def states(version: str) -> dict[str, Any]:
    keys = {"gpt": "gpt_20", "codec": "repcodec_20"} if version == "2.0" else {"gpt": "gpt_25", "codec": "codec_25"}
    read = {name: state(shapes()[keys.get(name, name)]) for name in (*keys, "s2mel", "campplus", "bigvgan", "w2vbert")}
    read["gpt"]["mel_head.bias"][config()["gpt"]["stop_mel_token"]] = -50
    rows = sum(config()["emo_num"])
    styles = config()["s2mel"]["style_encoder"]["dim"]
    width = config()["gpt"]["model_dim"]
    return read | {"feat1": weight("feat1", (rows, styles)), "feat2": weight("feat2", (rows, width))}


def build_runtime(
    version: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Runtime:  # fmt: skip
    return build(config(), states(version), device, dtype)


def close(actual: torch.Tensor, expected: npt.NDArray[Any], tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(actual.cpu()), expected, rtol=0, atol=tolerance)


SPEAKER, EMOTION, STYLE = normal(21, 1, 37, 1024), normal(22, 1, 30, 1024), normal(23, 1, 192)


def wave() -> npt.NDArray[np.float32]:
    return numbers("features")["wav16"].astype(np.float32)


def check_filter_banks(runtime: Runtime) -> None:
    close(runtime.kaldi_fbank(wave())[::EVERY], numbers("features")["kaldi_fbank"], LOGARITHMS)


def check_mel(runtime: Runtime) -> None:
    wav = runtime.resample(wave(), 16_000, 22_050)
    close(runtime.mel22(wav)[:, ::EVERY], numbers("features")["mel22"], LOGARITHMS)


def check_semantic_input(runtime: Runtime) -> None:
    close(runtime.seamless_feat(wave())[::EVERY], numbers("features")["seamless_feat"], LOGARITHMS)
    assert runtime.seamless_mask(wave()).min() == 1
    odd = wave()[: 400 + 160 * 40]  # 41 frames: the last of w2v-BERT's is half padding
    close(runtime.seamless_feat(odd), numbers("w2vbert_tiny")["odd_feat"], LOGARITHMS)
    assert runtime.seamless_mask(odd).tolist() == numbers("w2vbert_tiny")["odd_mask"].tolist()


def check_hidden(runtime: Runtime) -> None:
    expected = numbers("w2vbert_tiny")
    for layer, states in enumerate(runtime.hidden(runtime.seamless_feat(wave())[:40])):
        close(states, expected[f"hidden_{layer}"], 5e-5)
    odd = runtime.hidden(expected["odd_feat"], expected["odd_mask"])
    close(odd[2], expected["odd_hidden_2"], 5e-5)
    close(odd[3], expected["odd_hidden_3"], 5e-5)


def check_style(runtime: Runtime) -> None:
    close(runtime.campplus_style(wave()), numbers("features")["campplus_style"], 1e-5)


def suffix(runtime: Runtime) -> str:
    return "25" if runtime.gpt.conditions_on_style else "20"


def check_speaker(runtime: Runtime) -> None:
    if not runtime.gpt.conditions_on_style:
        close(runtime.spk_cond(SPEAKER), numbers("gpt_tiny")["spk_cond_20"], 1e-5)


def emotions(runtime: Runtime) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    base, reference = runtime.emo(SPEAKER), runtime.emo(EMOTION)
    return base, reference, runtime.emo_merged(base, reference, 0.6)


def check_emotions(runtime: Runtime) -> None:
    names = ("emo_base", "emo_ref", "emo_merged_a06")
    for name, vector in zip(names, emotions(runtime), strict=True):
        close(vector, numbers("gpt_tiny")[f"{name}_{suffix(runtime)}"], 1e-5)


def check_emotion_vector(runtime: Runtime) -> None:
    expected = numbers("gpt_tiny")
    assert runtime.emo_index(STYLE).tolist() == expected["emo_index"].tolist()
    if not runtime.gpt.conditions_on_style:
        mixed = runtime.emo_from_vector(expected["emo_vector"], STYLE, expected["emo_base_20"])
        close(mixed, expected["emo_from_vector_20"], 1e-5)


def heard(runtime: Runtime) -> npt.NDArray[np.float32]:
    return STYLE if runtime.gpt.conditions_on_style else SPEAKER


def check_prefix(runtime: Runtime) -> None:
    prefix = runtime.prefix(runtime.spk_cond(heard(runtime)), emotions(runtime)[2], numbers("gpt_tiny")["text"])
    close(prefix, numbers("gpt_tiny")[f"prefix_{suffix(runtime)}"], 1e-5)


def decoded(runtime: Runtime, **how: Any) -> tuple[list[int], torch.Tensor]:
    speaker, emotion = runtime.spk_cond(heard(runtime)), emotions(runtime)[2]
    codes, latents = zip(*runtime.decode(speaker, emotion, numbers("gpt_tiny")["text"], CODES, **how), strict=True)
    return list(codes), torch.stack(latents)


def check_greedy(runtime: Runtime) -> None:
    codes, latents = decoded(runtime, do_sample=False)
    assert codes == numbers("gpt_tiny")[f"codes_greedy_aligned_{suffix(runtime)}"].tolist()
    if not runtime.gpt.conditions_on_style:
        close(latents, numbers("gpt_tiny")["latents_greedy_aligned_20"], 1e-4)


def check_greedy_at_cached_positions(runtime: Runtime) -> None:
    codes, _ = decoded(runtime, do_sample=False, positions="cached")
    assert codes == numbers("gpt_tiny")[f"codes_greedy_upstream_kv_{suffix(runtime)}"].tolist()


def check_sampled(runtime: Runtime) -> None:
    torch.manual_seed(11)
    codes, _ = decoded(runtime)
    assert codes == numbers("gpt_tiny")[f"codes_sample_aligned_seed11_{suffix(runtime)}"].tolist()


def check_acoustics(runtime: Runtime) -> None:
    """The names on the runtime; what they compute is held stage by stage in test_acoustics."""
    expected, codes = numbers("s2mel_tiny"), numbers("s2mel_tiny")["codes"][None]
    close(runtime.vq2emb(codes)[:, :64], expected["vq2emb_head"], 1e-5)
    close(runtime.wav(normal(45, 1, 80, 40))[:2048], expected["wav_head"], 1e-5)
    if runtime.gpt.conditions_on_style:
        close(runtime.dec25(codes)[:, :64], expected["dec25_head"], 1e-5)
        close(runtime.mu25(codes), expected["mu25"], 1e-5)
        close(runtime.mu25(codes, 1.3), expected["mu25_dur13"], 1e-5)
        return
    features, latents = normal(31, 1, 22, 1024), normal(41, 1, 25, 1280)
    assert runtime.rep_codes(features).tolist() == expected["rep_codes"].tolist()
    close(runtime.rep_emb(features)[:, :64], expected["rep_emb_head"], 1e-5)
    close(runtime.gpt_layer(latents)[:, :64], expected["gpt_layer_head"], 1e-5)
    close(runtime.mu20(codes, latents), expected["mu20"], 1e-5)
    mel, own, mu = normal(42, 1, 80, 30), normal(43, 1, 30, 64), expected["mu20"]
    whole = np.concatenate([own[0], mu])
    close(runtime.dit_step(noise()[None], whole[None], mel, STYLE, 0.4), expected["dit_step_t04"], 1e-5)
    for steps in (25, 8):
        close(runtime.cfm(whole, mel, STYLE, noise()[None], steps), expected[f"cfm_{steps}"], 1e-5)
        close(runtime.cfm(mu, mel, STYLE, noise()[:, 30:], steps, own), expected[f"cfm_{steps}"], 1e-5)


CHECKS: list[Check] = [
    check_filter_banks,
    check_mel,
    check_semantic_input,
    check_hidden,
    check_style,
    check_speaker,
    check_emotions,
    check_emotion_vector,
    check_prefix,
    check_greedy,
    check_greedy_at_cached_positions,
    check_sampled,
    check_acoustics,
]
