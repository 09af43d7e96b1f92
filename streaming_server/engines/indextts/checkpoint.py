"""Loads the official checkpoint folder of 1.0 and 1.5; an error names the first wrong key or shape.

Sizes come from ``config.yaml`` or, if it does not define them, from the shapes of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from streaming_server.engines.indextts.frontend import Frontend
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.indextts.speaker import SpeakerEncoder
from streaming_server.engines.torch.conditioning import Conformer, Perceiver
from streaming_server.engines.torch.gpt import Gpt, GptShape, Projection
from streaming_server.engines.torch.vocoder import GeneratorShape, Vocoder
from streaming_server.engines.torch.weights import (
    Misfit,
    Shapes,
    State,
    fold_snakes,
    fold_weight_norm,
    load,
    read_state,
    settings_of,
    shapes_of,
    translate_errors,
    vocoder_dtype,
)
from streaming_server.errors import EngineUnavailable

CONFIG = "config.yaml"
TEXT_MODEL = "bpe.model"
GPT = "gpt.pth"
VOCODER = "bigvgan_generator.pth"

HOW_TO_GET_IT = "download the model with `.venv/bin/streaming-server download indextts-1.5` (see checkpoints/README.md)"

Config = Mapping[str, Any]

UNUSED = ("gpt.wte.", "inference_model.", "logit_scale")
"""Prefixes of keys that only training or the official implementation uses."""

REQUIRED_SETTINGS = {
    ("gpt", "condition_type"): "conformer_perceiver",
    ("bigvgan", "resblock"): "1",
    ("bigvgan", "activation"): "snakebeta",
    ("bigvgan", "feat_upsample"): False,
}
"""Settings for which this runtime supports one value only, that of 1.0 and 1.5."""


def build(
    config: Config, gpt_state: State, vocoder_state: State,
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
) -> Runtime:  # fmt: skip
    """Build a runtime from the parsed configuration (``gpt``, ``bigvgan``) and arrays by key.

    The encoders of the reference recording stay in float32; they run once per voice.

    Raises:
        EngineUnavailable: a key is missing, unknown or has the wrong shape, or a setting is not supported.
    """
    with translate_errors(HOW_TO_GET_IT):
        with settings_of(CONFIG):
            gpt, vocoder = assemble(config, gpt_state, vocoder_state)
            log_scale = config["bigvgan"]["snake_logscale"]
        load(gpt, gpt_state, GPT, unneeded)
        load(vocoder, fold_snakes(fold_weight_norm(vocoder_state, VOCODER), log_scale), VOCODER, unneeded)
    models = ((gpt, dtype), (vocoder, vocoder_dtype(torch.device(device), dtype)))
    module: nn.Module
    for module, module_dtype in models:
        module.requires_grad_(requires_grad=False).eval()
        for name, child in module.named_children():
            child.to(device, torch.float32 if name in FLOAT32_PARTS else module_dtype)
    pack(gpt)
    return Runtime(gpt, vocoder)


def unneeded(key: str) -> bool:
    return key.startswith(UNUSED)


def pack(gpt: nn.Module) -> None:
    """Store the projections in the memory layout of half-precision kernels.

    The shape stays (in, out) as published; the memory layout becomes (out, in). In float32 on the CPU this layout is
    slower: 14 GB/s instead of 22 GB/s.
    """
    for projection in gpt.modules():
        if isinstance(projection, Projection) and projection.weight.dtype != torch.float32:
            projection.weight.data = projection.weight.data.mT.contiguous().mT


FLOAT32_PARTS = ("conditioning_encoder", "perceiver_encoder", "speaker_encoder")


def assemble(config: Config, gpt_state: State, vocoder_state: State) -> tuple[Gpt, Vocoder]:
    """Create the modules on the meta device, with sizes from the configuration or else from the weights."""
    for (section, setting), known in REQUIRED_SETTINGS.items():
        value = config[section].get(setting, known)
        if str(value) != str(known):
            raise EngineUnavailable(f"{CONFIG} has {section}.{setting}: {value}; this runtime supports only {known}")
    with torch.device("meta"):
        return assemble_gpt(config, Shapes(gpt_state)), assemble_vocoder(config["bigvgan"], Shapes(vocoder_state))


def assemble_gpt(config: Config, shapes: Shapes) -> Gpt:
    shape = gpt_shape(config["gpt"])
    bands = config["bigvgan"].get("num_mels", 100)
    return Gpt(shape, *assemble_reader(config["gpt"]["condition_module"], shapes, "", bands, shape.width))


def gpt_shape(c: Config) -> GptShape:
    """
    Raises:
        Misfit: the width or the number of heads is not a positive integer, or the heads do not divide the width.
    """
    for name in ("model_dim", "heads"):
        if not isinstance(c[name], int) or c[name] < 1 or c["model_dim"] % c[name]:
            raise Misfit(f"{CONFIG}: missing or invalid setting {name!r}: {c[name]!r}")
    return GptShape(
        width=c["model_dim"],
        layers=c["layers"],
        heads=c["heads"],
        max_mel=c["max_mel_tokens"],
        max_text=c["max_text_tokens"],
        text_tokens=c["number_text_tokens"],
        mel_codes=c["number_mel_codes"],
        start_text=c.get("start_text_token", 0),
        stop_text=c.get("stop_text_token", 1),
        start_mel=c["start_mel_token"],
        stop_mel=c["stop_mel_token"],
    )


def assemble_reader(c: Config, shapes: Shapes, prefix: str, bands: int, out_width: int) -> tuple[Conformer, Perceiver]:
    """A Conformer over frames of ``bands`` values, and its Perceiver; ``prefix`` is the prefix of their keys."""
    width, heads = c["output_size"], c["attention_heads"]
    conformer = Conformer(
        n_mels=bands,
        width=width,
        inner=c["linear_units"],
        heads=heads,
        blocks=c["num_blocks"],
        kernel=shapes.size(f"{prefix}conditioning_encoder.encoders.0.conv_module.depthwise_conv.weight", 2, 15),
    )
    perceiver = Perceiver(
        width=out_width,
        context_width=width,
        heads=heads,
        head_width=shapes.size(f"{prefix}perceiver_encoder.layers.0.0.to_q.weight", 0, 64 * heads) // heads,
        inner=int(out_width * c["perceiver_mult"] * 2 / 3),
        depth=shapes.count(f"{prefix}perceiver_encoder.layers.", ".0.to_q.weight", 2),
        latents=shapes.size(f"{prefix}perceiver_encoder.latents", 0, 1 if prefix else 32),
    )
    return conformer, perceiver


def assemble_vocoder(c: Config, shapes: Shapes) -> Vocoder:
    shape = GeneratorShape.read(c, frame_width=c["gpt_dim"])
    first = "speaker_encoder.blocks.0.conv.conv.weight"
    block = "speaker_encoder.blocks.1."
    speaker = SpeakerEncoder(
        n_mels=c.get("num_mels", 100),
        channels=shapes.size(first, 0, 512),
        kernel=shapes.size(first, 2, 5),
        block_kernel=shapes.size(block + "res2net_block.blocks.0.conv.conv.weight", 2, 3),
        scale=shapes.count(block + "res2net_block.blocks.", ".conv.conv.weight", 7) + 1,
        squeeze=shapes.size(block + "se_block.conv1.conv.weight", 0, 128),
        attention=shapes.size("speaker_encoder.asp.tdnn.conv.conv.weight", 0, 128),
        pooled=shapes.size("speaker_encoder.mfa.conv.conv.weight", 0, 1536),
        size=c["speaker_embedding_dim"],
    )
    return Vocoder(shape, speaker, c["cond_d_vector_in_each_upsampling_layer"])


def read_config(folder: Path, how_to_get_it: str) -> Config:
    """The parsed ``config.yaml`` of a folder.

    Raises:
        EngineUnavailable: it is missing, or not valid YAML.
    """
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise EngineUnavailable(f"{folder / CONFIG} is missing; {how_to_get_it}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EngineUnavailable(f"{folder / CONFIG} is not valid YAML; {how_to_get_it}") from error
    return config if isinstance(config, dict) else {}


def require_sections(config: Config, folder: Path, sections: Sequence[str], how_to_get_it: str) -> None:
    """
    Raises:
        EngineUnavailable: the configuration lacks a section.
    """
    for section in sections:
        if not isinstance(config.get(section), dict):
            raise EngineUnavailable(f"{folder / CONFIG} has no section `{section}`; {how_to_get_it}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder with all files present and a parsed configuration."""

    folder: Path
    config: Config

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Check the folder without reading weights.

        Raises:
            EngineUnavailable: a file is missing or invalid; the message names it and says how to get the model.
        """
        for name in (CONFIG, TEXT_MODEL, GPT, VOCODER):
            if not (folder / name).is_file():
                raise EngineUnavailable(f"{folder / name} is missing; {HOW_TO_GET_IT}")
        config = read_config(folder, HOW_TO_GET_IT)
        require_sections(config, folder, ("gpt", "bigvgan"), HOW_TO_GET_IT)
        checkpoint = cls(folder, config)
        checkpoint.check()
        return checkpoint

    @property
    def version(self) -> str:
        """The version, such as ``1.5.0``; the configuration of 1.0 has no version."""
        major, minor, patch, *_ = [*str(self.config.get("version", "1.0")).split("."), "0", "0"]
        return f"{major}.{minor}.{patch}"

    @property
    def max_mel_tokens(self) -> int:
        return int(self.config["gpt"]["max_mel_tokens"])

    def check(self) -> None:
        """Compare all keys and shapes with the configuration without reading the weights."""
        gpt_state, vocoder_state = self._states()
        build(self.config, shapes_of(gpt_state), shapes_of(vocoder_state), device="meta")

    def frontend(self) -> Frontend:
        """Read the vocabulary.

        Raises:
            EngineUnavailable: it is truncated, or has more tokens than the model.
        """
        path = self.folder / TEXT_MODEL
        try:
            frontend = Frontend(path)
        except (RuntimeError, OSError) as error:
            raise EngineUnavailable(f"{path} is truncated or not a sentencepiece model; {HOW_TO_GET_IT}") from error
        if frontend.vocabulary_size > self.config["gpt"]["number_text_tokens"] + 1:
            with translate_errors(HOW_TO_GET_IT):
                raise Misfit.of(TEXT_MODEL, f"it has {frontend.vocabulary_size} tokens")
        return frontend

    def load(self, device: torch.device, dtype: torch.dtype) -> Runtime:
        """Read the weights.

        Raises:
            EngineUnavailable: a file is truncated, or does not fit the configuration.
        """
        gpt_state, vocoder_state = self._states()
        return build(self.config, gpt_state, vocoder_state, device, dtype)

    def _states(self) -> tuple[State, State]:
        with translate_errors(HOW_TO_GET_IT):
            return read_state(self.folder / GPT, "model"), read_state(self.folder / VOCODER, "generator")
