"""Makes a complete IndexTTS checkpoint folder that is a few megabytes: small sizes, random weights, a real vocabulary.

``python -m tests.engines.indextts.tiny FOLDER``. It speaks noise, by the same path as the real one: every file, key and
shape is as published, only smaller. This module does not know the fixtures.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import yaml
from torch import Tensor, nn

from streaming_server.engines.indextts.checkpoint import CONFIG, GPT, TEXT_MODEL, VOCODER, assemble

CORPUS = (
    "你 好 , 世 界 . 今 天 天 气 很 好 , 我 们 去 公 园 走 走 .",
    "这 是 一 个 语 音 合 成 系 统 , 它 一 边 想 一 边 说 .",
    "二 零 二 四 年 三 月 五 日 , 温 度 零 下 三 摄 氏 度 .",
    "请 问 您 需 要 什 么 帮 助 ? 谢 谢 ! 不 客 气 .",
    "人 工 智 能 正 在 改 变 世 界 - 真 的 吗 ?",
    "HELLO WORLD, THIS IS A STREAMING SPEECH SERVER.",
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG!",
    "FIRST SOUND EARLY, FEW GAPS, NO CLICKS - THAT IS ALL WE ASK FOR.",
    "IT'S A SMALL MODEL, AND IT SAYS NOTHING OF MEANING. DOES IT MATTER?",
    "XVAN4 ZHONG4 LV4 NV3 HAO3 MA1",
)
VOCABULARY = 160

SIZES: Mapping[str, Any] = {
    "version": 1.5,
    "gpt": {
        "model_dim": 64,
        "max_mel_tokens": 200,
        "max_text_tokens": 120,
        "heads": 4,
        "use_mel_codes_as_input": True,
        "mel_length_compression": 1024,
        "layers": 2,
        "number_text_tokens": VOCABULARY,
        "number_mel_codes": 66,
        "start_mel_token": 64,
        "stop_mel_token": 65,
        "start_text_token": 0,
        "stop_text_token": 1,
        "train_solo_embeddings": False,
        "condition_type": "conformer_perceiver",
        "condition_module": {
            "output_size": 32,
            "linear_units": 64,
            "attention_heads": 4,
            "num_blocks": 2,
            "input_layer": "conv2d2",
            "perceiver_mult": 2,
        },
    },
    "bigvgan": {
        "resblock": "1",
        "upsample_rates": [4, 4, 4, 4, 2, 2],
        "upsample_kernel_sizes": [8, 8, 4, 4, 4, 4],
        "upsample_initial_channel": 128,
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        "feat_upsample": False,
        "speaker_embedding_dim": 32,
        "cond_d_vector_in_each_upsampling_layer": True,
        "gpt_dim": 64,
        "activation": "snakebeta",
        "snake_logscale": True,
        "num_mels": 100,
    },
}

STOP_BIAS = 2.0
"""Added to STOP's logit: sampled sentences then end after some dozens of codes."""


def make_checkpoint(folder: Path, config: Mapping[str, Any] = SIZES, stop_bias: float = STOP_BIAS) -> Path:
    """Write ``config.yaml``, ``bpe.model``, ``gpt.pth`` and ``bigvgan_generator.pth``; the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    train_vocabulary(folder / TEXT_MODEL, config["gpt"]["number_text_tokens"])
    gpt, vocoder = (weights(module) for module in assemble(config, {}, {}))
    gpt["mel_head.bias"][config["gpt"]["stop_mel_token"]] += stop_bias
    torch.save(gpt, folder / GPT)
    torch.save({"generator": with_weight_norm(vocoder)}, folder / VOCODER)
    return folder


def train_vocabulary(path: Path, size: int) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(path.with_suffix("")), model_type="bpe", vocab_size=size,
        character_coverage=1.0, hard_vocab_limit=False, bos_id=0, eos_id=1, unk_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    path.with_suffix(".vocab").unlink()


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {key: weight(key, tuple(value.shape)) for key, value in module.state_dict().items()}


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """Random numbers that depend on the key alone, scaled so that activations neither fade nor explode."""
    r = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if key.endswith("running_var"):
        r = 0.5 + np.abs(r)
    elif key.endswith(("alpha", "beta", "running_mean")):
        r = 0.2 * r
    elif key.endswith("bias") or ("norm" in key and not key.endswith(("weight", "gamma"))):
        r = 0.1 * r
    elif "embedding" in key or key.endswith("latents"):
        r = 0.25 * r
    elif r.ndim < 2:
        r = 1 + 0.1 * r
    elif ".c_" in key:
        r = r / np.sqrt(shape[0])
    else:
        r = r / np.sqrt(np.prod(shape[1:]))
    return torch.tensor(r, dtype=torch.float32)


def with_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The generator's convolutions as published: a direction ``weight_v`` and a gain ``weight_g``."""
    published = {}
    for key, value in state.items():
        if key.endswith(".weight") and key.startswith(("conv_", "ups.", "resblocks.")):
            published[key + "_g"] = 0.5 * torch.ones(value.shape[0], 1, 1)
            published[key + "_v"] = value
        else:
            published[key] = value
    return published


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a tiny IndexTTS checkpoint folder with random weights.")
    parser.add_argument("folder", type=Path)
    make_checkpoint(parser.parse_args().folder)
