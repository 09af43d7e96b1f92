"""A small HiggsAudio checkpoint of the real layout with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from streaming_server.engines.torch.torchaudio import settle_torchaudio

settle_torchaudio()

from transformers import (  # noqa: E402
    DacConfig,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2TokenizerConfig,
    HiggsAudioV2TokenizerModel,
    HubertConfig,
    PreTrainedTokenizerFast,
)

SPECIAL = (
    *("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|AUDIO_OUT|>", "<|audio_out_bos|>", "<|audio_eos|>", "<|reserved_special_token_6|>"),
    *("<|scene_desc_start|>", "<|scene_desc_end|>"),
)
AUDIO = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'scene' %}<|scene_desc_start|>\n"
    "{% else %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{% endif %}"
    "{% for part in message.content %}{% if part.type == 'audio' %}" + AUDIO + "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
    "{% if message.role == 'scene' %}\n<|scene_desc_end|>{% else %}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>{% endif %}"
)
"""Holds what the real one does, though not in its order for a scene."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        chat_template=CHAT_TEMPLATE,
    )


def make_checkpoint(folder: Path) -> tuple[Path, Path]:
    """Write a model and its codec and return their folders."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    ids: dict[str, Any] = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = HiggsAudioV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        codebook_size=1026,
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<|eot_id|>"],
        pad_token_id=ids["<|eot_id|>"],
        audio_token_id=ids["<|AUDIO_OUT|>"],
        audio_bos_token_id=ids["<|audio_out_bos|>"],
        audio_delay_token_id=ids["<|reserved_special_token_6|>"],
        initializer_range=0.3,
    )
    model = HiggsAudioV2ForConditionalGeneration(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    acoustic = DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=64,
        downsampling_ratios=[8, 5, 4, 2, 3],
        upsampling_ratios=[8, 5, 4, 2, 3],
        hidden_size=16,
    )
    semantic = HubertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
    )
    codec_config = HiggsAudioV2TokenizerConfig(
        acoustic_model_config=acoustic,
        semantic_model_config=semantic,
        target_bandwidths=[0.5, 1, 1.5, 2],
        codebook_dim=8,
    )
    codec = HiggsAudioV2TokenizerModel(codec_config)
    _liven(codec)
    codec.save_pretrained(folder / "codec")
    return folder / "model", folder / "codec"


@torch.no_grad()
def _liven(codec: HiggsAudioV2TokenizerModel) -> None:
    """Weights of a size at which every layer's output depends on its input, as those of a trained codec are."""
    for name, weight in [*codec.named_parameters(), *codec.named_buffers()]:
        if name.endswith("alpha"):
            weight.fill_(1.0)
        elif name.endswith(".embed"):
            weight.normal_()
        elif weight.ndim > 1:
            weight.normal_(std=weight[0].numel() ** -0.5 * (0.3 if "res_unit" in name else 1.0))
    codec.acoustic_decoder.conv2.weight.mul_(0.02)
