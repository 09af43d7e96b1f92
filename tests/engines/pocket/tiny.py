"""A Pocket TTS model with the package's own classes, of the smallest sizes and with random weights."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

FRAME = 1920
"""Samples of a frame: 80 ms at 24 kHz."""
FRAMES_AFTER_EOS = 4
LETTERS = ["<unk>", "▁", *string.ascii_letters, *string.digits, *".,!?;:'-"]


def make_folder(model_dir: Path, language: str = "english", *, ends: bool = True) -> Path:
    """The folder of a language; without ``ends`` the model never ends a sentence by itself.

    Returns:
        The folder ``languages/NAME``.
    """
    from pocket_tts import TTSModel

    folder = model_dir / "languages" / language
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.Unigram([(letter, -1.0) for letter in LETTERS], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = _config(folder, ends)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(1)
    model = TTSModel.load_model(config=folder / "config.yaml")
    torch.nn.init.normal_(model.flow_lm.speaker_proj_weight)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def _config(folder: Path, ends: bool) -> dict[str, Any]:
    seanet = {
        "dimension": 16,
        "channels": 1,
        "n_filters": 2,
        "n_residual_layers": 1,
        "ratios": [6, 5, 4],
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "dilation_base": 2,
        "pad_mode": "constant",
        "compress": 2,
    }
    transformer = {
        "d_model": 16,
        "num_heads": 2,
        "num_layers": 1,
        "layer_scale": 0.01,
        "context": 250,
        "dim_feedforward": 32,
        "input_dimension": 16,
        "output_dimensions": [16],
    }
    return {
        "default_eos_threshold": -1e9 if ends else 1e9,
        "model_recommended_frames_after_eos": FRAMES_AFTER_EOS,
        "flow_lm": {
            "insert_bos_before_voice": True,
            "dtype": "float32",
            "flow": {"depth": 1, "dim": 16},
            "transformer": {"d_model": 32, "hidden_scale": 2, "max_period": 10000, "num_heads": 2, "num_layers": 2},
            "lookup_table": {
                "dim": 32,
                "n_bins": len(LETTERS),
                "tokenizer": "tokenizers",
                "tokenizer_path": str(folder / "tokenizer.json"),
            },
        },
        "mimi": {
            "dtype": "float32",
            "sample_rate": 24000,
            "inner_dim": 8,
            "outer_dim": 16,
            "channels": 1,
            "frame_rate": 12.5,
            "seanet": seanet,
            "transformer": transformer,
            "quantizer": {"dimension": 8, "output_dimension": 16},
        },
    }
