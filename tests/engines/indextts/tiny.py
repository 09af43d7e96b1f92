"""Makes a complete IndexTTS checkpoint folder that is a few megabytes: small sizes, random weights, a real vocabulary.

``python -m tests.engines.indextts.tiny FOLDER``. It speaks noise, by the same path as the real one: every file, key and
shape is as published, only smaller. This module does not know the fixtures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from torch import Tensor

from streaming_server.engines.indextts.checkpoint import CONFIG, GPT, TEXT_MODEL, VOCODER, assemble
from tests.engines.indextts.weights import state

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
STOP_GAIN = 1.5

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
        "number_mel_codes": 258,
        "start_mel_token": 256,
        "stop_mel_token": 257,
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
        "upsample_rates": [8, 8, 4, 4],
        "upsample_kernel_sizes": [16, 16, 8, 8],
        "upsample_initial_channel": 32,
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [2]],
        "feat_upsample": False,
        "speaker_embedding_dim": 32,
        "cond_d_vector_in_each_upsampling_layer": True,
        "gpt_dim": 64,
        "activation": "snakebeta",
        "snake_logscale": True,
        "num_mels": 100,
    },
}

CODES = 40
"""About as many codes a segment gets when sampled; ``max_mel_tokens`` may end it earlier."""


def make_checkpoint(folder: Path, config: Mapping[str, Any] = SIZES) -> Path:
    """Write ``config.yaml``, ``bpe.model``, ``gpt.pth`` and ``bigvgan_generator.pth``; the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    train_vocabulary(folder / TEXT_MODEL, config["gpt"]["number_text_tokens"])
    gpt, vocoder = random_states(config)
    make_it_stop(gpt, config["gpt"]["stop_mel_token"])
    torch.save(gpt, folder / GPT)
    torch.save({"generator": vocoder}, folder / VOCODER)
    return folder


def make_it_stop(gpt: dict[str, Tensor], stop: int) -> None:
    """Let the mel positions move along one direction, and STOP's logit be the way they have come along it."""
    positions = gpt["mel_pos_embedding.emb.weight"]  # (positions, width)
    length = positions.shape[1] ** 0.5
    direction = torch.nn.functional.normalize(gpt["mel_head.weight"][stop], dim=0)
    way = torch.arange(positions.shape[0]) / CODES - 1
    positions += way.clamp(-1, 1)[:, None] * direction * length
    gpt["mel_head.weight"][stop] = STOP_GAIN * direction
    gpt["mel_head.bias"][stop] = 0.0


def train_vocabulary(path: Path, size: int) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(path.with_suffix("")), model_type="bpe", vocab_size=size,
        character_coverage=1.0, hard_vocab_limit=False, bos_id=0, eos_id=1, unk_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    path.with_suffix(".vocab").unlink()


def random_states(config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dicts of GPT and vocoder with the keys and shapes that a checkpoint of these sizes has."""
    gpt, vocoder = ({k: list(v.shape) for k, v in module.state_dict().items()} for module in assemble(config, {}, {}))
    for key in [key for key in vocoder if key.endswith(".weight") and key.startswith(("conv_", "ups.", "resblocks."))]:
        shape = vocoder.pop(key)
        vocoder |= {key + "_g": [shape[0], 1, 1], key + "_v": shape}
    return state(gpt), state(vocoder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a tiny IndexTTS checkpoint folder with random weights.")
    parser.add_argument("folder", type=Path)
    make_checkpoint(parser.parse_args().folder)
