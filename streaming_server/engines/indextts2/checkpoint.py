"""Builds a runtime from a configuration and state dicts.

All required keys must be present with the right shape; keys that are known to be unused are ignored.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from streaming_server.engines.indextts.checkpoint import CONFIG, Config, assemble_reader, gpt_shape, pack
from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.assembly import BIGVGAN_CONFIG, assemble_acoustics, unneeded
from streaming_server.engines.indextts2.campplus import CampPlus, StyleShape
from streaming_server.engines.indextts2.emotion import EmotionMatrix
from streaming_server.engines.indextts2.features import MelShape
from streaming_server.engines.indextts2.gpt import EmotionGpt, Gpt20, Gpt25
from streaming_server.engines.indextts2.languages import COMMON
from streaming_server.engines.indextts2.runtime import Hearing, Runtime
from streaming_server.engines.indextts2.w2vbert import W2vBert
from streaming_server.engines.torch.arrays import tensor_of
from streaming_server.engines.torch.weights import (
    Shapes,
    State,
    fold_snakes,
    fold_weight_norm,
    load,
    settings_of,
    translate_errors,
    vocoder_dtype,
)
from streaming_server.errors import EngineUnavailable

logger = logging.getLogger(__name__)

HOW_TO_GET_IT = {
    "2.0": "download the model with `.venv/bin/streaming-server download indextts-2` (see checkpoints/README.md)",
    "2.5": "download the model with `.venv/bin/streaming-server download indextts-2.5` (see checkpoints/README.md)",
}

FILES = {
    "gpt": "gpt.pth", "s2mel": "s2mel.pth", "codec": "the semantic codec", "campplus": "CAM++'s file",
    "bigvgan": "bigvgan_generator.pt", "w2vbert": "w2v-BERT's model.safetensors",
}  # fmt: skip
"""Names of the state dicts in error messages."""
W2VBERT_CONFIG = "w2v-bert-2.0/config.json"

GPT_UNUSED = ("gpt.wte.", "inference_model.", "logit_scale", "text_head.")
"""Prefixes of keys that only training or the official implementation uses."""
FLOAT32_PARTS = (
    "conditioning_encoder", "perceiver_encoder", "spk_emb_proj",
    "emo_conditioning_encoder", "emo_perceiver_encoder", "emovec_layer", "emo_layer",
)  # fmt: skip
"""Parts of the GPT that run once per voice or emotion."""

WRAPPERS = ("model", "net", "generator", "state_dict")
"""Keys under which a file can contain its state dict."""


def version_of(config: Config, states: Mapping[str, State] | None = None) -> str:
    """Return ``2.0`` or ``2.5``, from the configuration or else from the keys of the GPT.

    Raises:
        EngineUnavailable: the version is not supported.
    """
    said = config.get("version")
    if said is None and states is not None:
        return "2.5" if "spk_emb_proj.weight" in states["gpt"] else "2.0"
    version = ".".join([*str(said).split("."), "0"][:2])
    if version not in HOW_TO_GET_IT:
        raise EngineUnavailable(f"{CONFIG} has version: {said}; this runtime supports only 2.0 and 2.5")
    return version


def build(
    config: Config, states: Mapping[str, Any],
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
) -> Runtime:  # fmt: skip
    """Build a runtime from the parsed configuration and arrays by key.

    Args:
        config: ``config.yaml``, with the ``config.json`` of the two external models as ``bigvgan`` and ``w2vbert``.
        states: The contents of the files ``gpt``, ``s2mel``, ``codec``, ``campplus``, ``bigvgan`` and ``w2vbert``; the
            matrices ``feat1`` and ``feat2``; and, to normalise features, ``stats`` with ``mean`` and ``var``.
        device: The device of the models.
        dtype: The dtype of the GPT. On CUDA the vocoder uses fp16 instead of bf16; the flow uses bf16 instead of fp16.
            The models that analyse recordings stay in float32.

    Raises:
        EngineUnavailable: a key is missing or has the wrong shape, or a setting is missing or not supported.
    """
    flat = {name: flattened(state) for name, state in states.items() if isinstance(state, Mapping)}
    version = version_of(config, flat)
    enhanced = version == "2.5"
    how = HOW_TO_GET_IT[version]
    with translate_errors(how), settings_of(CONFIG):
        with torch.device("meta"):
            gpt = assemble_gpt(config, Shapes(flat["gpt"]), enhanced)
            s2mel, codec, vocoder = assemble_acoustics(config, flat, enhanced)
            campplus = CampPlus(style_shape(Shapes(flat["campplus"])))
            with settings_of(W2VBERT_CONFIG):
                w2vbert = W2vBert(config["w2vbert"])
        mel = mel_shape(config["s2mel"]["preprocess_params"])
        sizes = tuple(int(size) for size in numbers(config["emo_num"]))
        log_scale = config["bigvgan"].get("snake_logscale", True)
        parts = {"gpt": (gpt, unneeded_by_gpt), "campplus": (campplus, nothing)} | {
            name: (module, unneeded(config, enhanced, name))
            for name, module in {"s2mel": s2mel, "codec": codec, "bigvgan": vocoder}.items()
        }
    with translate_errors(how):
        for name, (module, passed_over) in parts.items():
            folded = fold_weight_norm(flat[name], FILES[name])
            if name == "bigvgan":
                folded = fold_snakes(folded, log_scale)
            settings = BIGVGAN_CONFIG if name == "bigvgan" else CONFIG
            load(module, folded, FILES[name], passed_over, tolerant=True, config=settings)
        state = without_prefix(flat["w2vbert"])
        load(w2vbert.model, state, FILES["w2vbert"], w2vbert.unneeded, tolerant=True, config=W2VBERT_CONFIG)
    for module in (gpt, s2mel, codec, campplus, vocoder, w2vbert):
        module.requires_grad_(requires_grad=False).eval().to(device)
    for name, child in gpt.named_children():
        child.to(torch.float32 if name in FLOAT32_PARTS else dtype)
    pack(gpt)
    s2mel.estimator.to(torch.float32 if dtype == torch.float32 else torch.bfloat16)
    vocoder.to(vocoder_dtype(torch.device(device), dtype))
    features = w2vbert.model.config.hidden_size
    stats = flat.get("stats", {"mean": torch.zeros(features), "var": torch.ones(features)})
    mean, variance = (tensor_of(stats[name]).float().to(device) for name in ("mean", "var"))
    hearing = Hearing(w2vbert, campplus, mean, variance.sqrt(), mel)
    emotions = EmotionMatrix(matrix(states["feat1"], device), matrix(states["feat2"], device), sizes)
    return Runtime(gpt, hearing, emotions, Acoustics(s2mel, codec, vocoder), config.get("lang_id_25", COMMON))


def unneeded_by_gpt(key: str) -> bool:
    return key.startswith(GPT_UNUSED)


def nothing(_: str) -> bool:
    return False


def assemble_gpt(config: Config, shapes: Shapes, enhanced: bool) -> EmotionGpt:
    c = config["gpt"]
    shape, features = gpt_shape(c), config["semantic_codec"]["hidden_size"]
    emotion_width = shapes.size("emo_perceiver_encoder.latents", 1, 1024)
    emotion = assemble_reader(c["emo_condition_module"], shapes, "emo_", features, emotion_width)
    if enhanced:
        style = shapes.size("spk_emb_proj.weight", 1, config["s2mel"]["style_encoder"]["dim"])
        return Gpt25(shape, style, shapes.size("lang_embedding.weight", 0, 107), emotion)
    return Gpt20(shape, assemble_reader(c["condition_module"], shapes, "", features, shape.width), emotion)


def style_shape(shapes: Shapes) -> StyleShape:
    published = StyleShape()
    first, dense = "xvector.tdnn.linear.weight", "xvector.block1.tdnnd1."
    head = shapes.size("head.conv1.weight", 0, published.head)
    return StyleShape(
        bands=shapes.size(first, 1, head * published.bands // 8) // head * 8,
        head=head,
        first=shapes.size(first, 0, published.first),
        first_kernel=shapes.size(first, 2, published.first_kernel),
        growth=shapes.size(dense + "cam_layer.linear_local.weight", 0, published.growth),
        inner=shapes.size(dense + "linear1.weight", 0, published.inner),
        kernel=shapes.size(dense + "cam_layer.linear_local.weight", 2, published.kernel),
        squeezed=shapes.size(dense + "cam_layer.linear1.weight", 0, published.squeezed),
        layers=tuple(
            shapes.count(f"xvector.block{block}.", ".linear1.weight", layers) // 2 or layers
            for block, layers in enumerate(published.layers, 1)
        ),
        size=shapes.size("xvector.dense.linear.weight", 0, published.size),
    )


def mel_shape(c: Config) -> MelShape:
    spectrum = c["spect_params"]
    highest = spectrum.get("fmax")
    return MelShape(
        rate_hz=c["sr"],
        fft=spectrum["n_fft"],
        window=spectrum["win_length"],
        hop=spectrum["hop_length"],
        bands=spectrum["n_mels"],
        lowest_hz=float(spectrum.get("fmin", 0)),
        highest_hz=None if highest in {None, "None"} else float(highest),
    )


def flattened(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Unwrap a state dict, join nested keys by dots, and remove the prefix of ``DataParallel``."""
    for wrapper in WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            return flattened(state[wrapper])
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": array for inner, array in flattened(value).items()}
        elif hasattr(value, "shape"):
            flat[key] = tensor_of(value)
    return {re.sub(r"(^|\.)module\.", r"\1", key): value for key, value in flat.items()}


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("wav2vec2_bert."): value for key, value in state.items()}


def matrix(content: Any, device: torch.device | str) -> Tensor:
    """A matrix at the top level of a file or as the only entry of a dict."""
    if isinstance(content, Mapping):
        (content,) = content.values()
    return tensor_of(content).float().to(device)


def numbers(value: Any) -> list[Any]:
    return value.split(",") if isinstance(value, str) else list(value)
