"""Makes complete IndexTTS 2.0 and 2.5 folders of a few megabytes: small sizes, random weights, real vocabularies.

``python -m tests.engines.indextts2.tiny FOLDER [2.0|2.5]``. They speak noise, by the same path as the real ones: every
file, key and shape is as published, only smaller, and of other sizes than the fixtures'.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from streaming_server.engines.indextts2.assembly import assemble_acoustics
from streaming_server.engines.indextts2.campplus import CampPlus, StyleShape
from streaming_server.engines.indextts2.checkpoint import assemble_gpt
from streaming_server.engines.indextts2.folder import BPE, CACHE, TIKTOKEN
from streaming_server.engines.indextts2.vocabulary import SPECIAL_NAMES
from streaming_server.engines.indextts2.w2vbert import W2vBert
from streaming_server.engines.torch.weights import Shapes
from tests.engines.indextts.tiny import VOCABULARY, make_it_stop, train_vocabulary
from tests.engines.indextts.weights import state, weight
from tests.engines.indextts2.acoustic_parity import shapes as published_shapes

FEATURES, STYLE, LATENTS, INNER = 48, 24, 64, 40

STYLES = StyleShape(head=8, first=16, growth=8, inner=16, squeezed=8, layers=(2, 3, 2), size=STYLE)

W2VBERT: Mapping[str, Any] = {
    "hidden_size": FEATURES,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "feature_projection_input_dim": 160,
    "conv_depthwise_kernel_size": 31,
    "position_embeddings_type": "relative_key",
    "left_max_position_embeddings": 64,
    "right_max_position_embeddings": 8,
    "add_adapter": False,
}
BIGVGAN: Mapping[str, Any] = {
    "resblock": "1",
    "upsample_rates": [8, 8, 4],
    "upsample_kernel_sizes": [16, 16, 8],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [2]],
    "num_mels": 80,
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
    "activation": "snakebeta",
    "snake_logscale": True,
}
READER = {"output_size": 24, "input_layer": "conv2d2", "perceiver_mult": 2, "num_blocks": 1}
SIZES: Mapping[str, Any] = {
    "gpt": {
        "model_dim": LATENTS,
        "max_mel_tokens": 250,
        "max_text_tokens": 130,
        "heads": 4,
        "layers": 2,
        "number_text_tokens": VOCABULARY,
        "number_mel_codes": 130,
        "start_mel_token": 128,
        "stop_mel_token": 129,
        "start_text_token": 0,
        "stop_text_token": 1,
        "condition_type": "conformer_perceiver",
        "condition_module": READER | {"linear_units": 48, "attention_heads": 4},
        "emo_condition_module": READER | {"linear_units": 32, "attention_heads": 2},
    },
    "semantic_codec": {
        "codebook_size": 128,
        "hidden_size": FEATURES,
        "codebook_dim": 8,
        "vocos_dim": 16,
        "vocos_intermediate_dim": 24,
        "vocos_num_layers": 2,
    },
    "s2mel": {
        "preprocess_params": {
            "sr": 22050,
            "spect_params": {
                "n_fft": 1024, "win_length": 1024, "hop_length": 256, "n_mels": 80, "fmin": 0, "fmax": "None",
            },
        },
        "dit_type": "DiT",
        "style_encoder": {"dim": STYLE},
        "length_regulator": {
            "channels": 32, "is_discrete": False, "in_channels": FEATURES, "sampling_ratios": [1, 1, 1, 1],
            "f0_condition": False,
        },
        "DiT": {
            "hidden_dim": 32, "num_heads": 4, "depth": 3, "in_channels": 80, "content_dim": 32, "style_condition": True,
            "final_layer_type": "wavenet", "is_causal": False, "long_skip_connection": True,
            "uvit_skip_connection": True, "time_as_token": False, "style_as_token": False, "f0_condition": False,
        },
        "wavenet": {
            "hidden_dim": 32, "num_layers": 2, "kernel_size": 5, "dilation_rate": 1, "style_condition": True,
        },
    },
    "emo_num": [3, 17, 2, 8, 4, 5, 10, 24],
}  # fmt: skip

HINTS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "gpt": {
        "emo_perceiver_encoder.latents": (1, 40),
        "perceiver_encoder.latents": (6, LATENTS),
        "perceiver_encoder.layers.0.0.to_q.weight": (4 * 8, LATENTS),
        "emo_perceiver_encoder.layers.0.0.to_q.weight": (2 * 8, 40),
    },
    "s2mel": {
        "cfm.estimator.transformer.layers.0.feed_forward.w1.weight": (INNER, 32),
        "gpt_layer.0.weight": (20, LATENTS),
        "gpt_layer.1.weight": (12, 20),
        "gpt_layer.2.weight": (FEATURES, 12),
    },
    "codec": {},
}
"""Sizes that no configuration holds."""


def config_of(version: str) -> dict[str, Any]:
    text_tokens = 256 + len(SPECIAL_NAMES) if version == "2.5" else VOCABULARY
    gpt = dict(SIZES["gpt"]) | {"number_text_tokens": text_tokens}
    return dict(SIZES) | {"version": float(version), "gpt": gpt}


def make_checkpoint(folder: Path, version: str = "2.0") -> Path:
    """Write all files of an official folder, the external ones below ``hf_cache``; the same every time."""
    cache = folder / CACHE
    for each in (folder, cache / "w2v-bert-2.0", cache / "bigvgan"):
        each.mkdir(parents=True, exist_ok=True)
    config = config_of(version)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    if version == "2.5":
        write_ranks(folder / TIKTOKEN)
    else:
        train_vocabulary(folder / BPE, VOCABULARY)
    states = random_states(config, version)
    make_it_stop(states["gpt"], config["gpt"]["stop_mel_token"])
    torch.save({"model": states["gpt"]}, folder / "gpt.pth")
    torch.save({"net": nested(states["s2mel"])}, folder / "s2mel.pth")
    if version == "2.5":
        torch.save({"model": states["codec"]}, folder / "codec.pth")
    else:
        save_file(states["codec"], cache / "semantic_codec_model.safetensors")
    rows = sum(config["emo_num"])
    torch.save(weight("feat1", (rows, STYLE)), folder / "feat1.pt")
    torch.save(weight("feat2", (rows, LATENTS)), folder / "feat2.pt")
    stats = {"mean": weight("mean", (FEATURES,)), "var": weight("running_var", (FEATURES,))}
    torch.save(stats, folder / "wav2vec2bert_stats.pt")
    torch.save(states["campplus"], cache / "campplus_cn_common.bin")
    (cache / "bigvgan" / "config.json").write_text(json.dumps(dict(BIGVGAN)))
    torch.save({"generator": states["bigvgan"]}, cache / "bigvgan" / "bigvgan_generator.pt")
    (cache / "w2v-bert-2.0" / "config.json").write_text(json.dumps(dict(W2VBERT)))
    save_file(states["w2vbert"], cache / "w2v-bert-2.0" / "model.safetensors")
    return folder


def nested(s2mel: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As published: one dict a part, with what ``DataParallel`` puts in front of the keys of one of them."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in s2mel.items():
        part, _, rest = key.partition(".")
        parts.setdefault(part, {})["module." + rest if part == "cfm" else rest] = value
    return parts


def random_states(config: Mapping[str, Any], version: str) -> dict[str, dict[str, Tensor]]:
    """The state dicts with the keys and shapes that a checkpoint of these sizes has."""
    enhanced = version == "2.5"
    hints = {name: {k: torch.empty(s, device="meta") for k, s in of.items()} for name, of in HINTS.items()}
    with torch.device("meta"):
        gpt = assemble_gpt(config, Shapes(hints["gpt"]), enhanced)
        s2mel, codec, vocoder = assemble_acoustics({**config, "bigvgan": BIGVGAN}, hints, enhanced)
        campplus, w2vbert = CampPlus(STYLES), W2vBert(W2VBERT)
    modules = {
        "gpt": gpt, "s2mel": s2mel, "codec": codec, "bigvgan": vocoder, "campplus": campplus, "w2vbert": w2vbert.model,
    }  # fmt: skip
    normed = {
        numberless(key.removesuffix("_g"))
        for part in published_shapes().values() for key in part if key.endswith(".weight_g")
    }  # fmt: skip
    states = {}
    for name, module in modules.items():
        shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
        for key in [key for key in shapes if numberless(key) in normed]:
            shape = shapes.pop(key)
            shapes |= {key + "_g": [shape[0], *[1] * (len(shape) - 1)], key + "_v": shape}
        states[name] = state(shapes)
    return states


def numberless(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def write_ranks(path: Path) -> None:
    """Every byte is a token; the printable ones come first, as in GPT-2's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {rank}" for rank, byte in enumerate([*printable, *rest])]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a tiny IndexTTS 2 checkpoint folder with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("version", nargs="?", choices=("2.0", "2.5"), default="2.0")
    options = parser.parse_args()
    make_checkpoint(options.folder, options.version)
