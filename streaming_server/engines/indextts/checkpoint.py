"""The official checkpoint folder, read strictly: a sentence names the first key or shape that is off.

Sizes come from ``config.yaml``, and where it is silent from the shapes of the weights. This module does not know how
the model computes, nor requests, text or voices.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from torch import Tensor, nn

from streaming_server.engines.indextts.arrays import tensor_of
from streaming_server.engines.indextts.conditioning import Conformer, Perceiver
from streaming_server.engines.indextts.frontend import Frontend
from streaming_server.engines.indextts.gpt import Gpt, GptShape, Projection
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.indextts.speaker import SpeakerEncoder
from streaming_server.engines.indextts.vocoder import GeneratorShape, Vocoder
from streaming_server.errors import EngineUnavailable

CONFIG = "config.yaml"
TEXT_MODEL = "bpe.model"
GPT = "gpt.pth"
VOCODER = "bigvgan_generator.pth"

HOW_TO_GET_IT = (
    "download the model with `huggingface-cli download IndexTeam/IndexTTS-1.5 --local-dir checkpoints`"
    " (checkpoints/README.md tells more)"
)

State = Mapping[str, Tensor | npt.NDArray[np.generic]]
Config = Mapping[str, Any]

COMPUTED = (".filter", ".pe", ".num_batches_tracked", ".attn.bias", ".attn.masked_bias")
"""Endings of keys that hold constants or training's book-keeping."""
UNUSED = ("gpt.wte.", "inference_model.", "logit_scale")
"""Beginnings of keys that only training or the public program reads."""

REQUIRED_SETTINGS = {
    ("gpt", "condition_type"): "conformer_perceiver",
    ("bigvgan", "resblock"): "1",
    ("bigvgan", "activation"): "snakebeta",
    ("bigvgan", "feat_upsample"): False,
}
"""Settings of which this runtime knows one value only, the one of 1.0 and 1.5."""


def build(
    config: Config, gpt_state: State, vocoder_state: State,
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
) -> Runtime:  # fmt: skip
    """A runtime from the parsed configuration (``gpt``, ``bigvgan``) and arrays by key.

    The reference's encoders stay in float32; they run once a voice.

    Raises:
        EngineUnavailable: a key is missing, unknown or of another shape; a setting this runtime does not know.
    """
    try:
        gpt, vocoder = assemble(config, gpt_state, vocoder_state)
        log_scale = config["bigvgan"]["snake_logscale"]
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineUnavailable(f"{CONFIG} lacks or misuses the setting {error}; {HOW_TO_GET_IT}") from error
    load(gpt, gpt_state, GPT)
    load(vocoder, fold_snakes(fold_weight_norm(vocoder_state), log_scale), VOCODER)
    models: tuple[nn.Module, nn.Module] = (gpt, vocoder)
    for module in models:
        module.requires_grad_(requires_grad=False).eval()
        for name, child in module.named_children():
            child.to(device, torch.float32 if name in FLOAT32_PARTS else dtype)
    for projection in gpt.modules():
        if isinstance(projection, Projection) and dtype != torch.float32:
            # Shape (in, out) as published, memory (out, in): the layout the half-precision kernels are made for. In
            # float32 on the CPU it was measured slower, 14 GB/s against 22.
            projection.weight.data = projection.weight.data.mT.contiguous().mT
    return Runtime(gpt, vocoder)


FLOAT32_PARTS = ("conditioning_encoder", "perceiver_encoder", "speaker_encoder")


def assemble(config: Config, gpt_state: State, vocoder_state: State) -> tuple[Gpt, Vocoder]:
    """The modules without memory, their sizes from the configuration and, where it is silent, from the weights."""
    for (section, setting), known in REQUIRED_SETTINGS.items():
        value = config[section].get(setting, known)
        if str(value) != str(known):
            raise EngineUnavailable(f"{CONFIG} has {section}.{setting}: {value}; this runtime knows only {known}")
    with torch.device("meta"):
        return assemble_gpt(config, Shapes(gpt_state)), assemble_vocoder(config["bigvgan"], Shapes(vocoder_state))


def assemble_gpt(config: Config, shapes: Shapes) -> Gpt:
    c = config["gpt"]
    shape = GptShape(
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
    condition = c["condition_module"]
    width, heads = condition["output_size"], condition["attention_heads"]
    conformer = Conformer(
        n_mels=config["bigvgan"].get("num_mels", 100),
        width=width,
        inner=condition["linear_units"],
        heads=heads,
        blocks=condition["num_blocks"],
        kernel=shapes.size("conditioning_encoder.encoders.0.conv_module.depthwise_conv.weight", 2, 15),
    )
    perceiver = Perceiver(
        width=shape.width,
        context_width=width,
        heads=heads,
        head_width=shapes.size("perceiver_encoder.layers.0.0.to_q.weight", 0, 64 * heads) // heads,
        inner=int(shape.width * condition["perceiver_mult"] * 2 / 3),
        depth=shapes.count("perceiver_encoder.layers.", ".0.to_q.weight", 2),
        latents=shapes.size("perceiver_encoder.latents", 0, 32),
    )
    return Gpt(shape, conformer, perceiver)


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


class Shapes:
    """Sizes that no configuration holds, read off the weights; where those lack the key, the published size."""

    def __init__(self, state: State) -> None:
        self._state = state

    def size(self, key: str, axis: int, published: int) -> int:
        return int(self._state[key].shape[axis]) if key in self._state else published

    def count(self, beginning: str, ending: str, published: int) -> int:
        return sum(key.startswith(beginning) and key.endswith(ending) for key in self._state) or published


def fold_weight_norm(state: State) -> dict[str, Tensor]:
    """``weight_g`` and ``weight_v`` → ``weight = v · g / ‖v‖``, the norm over all axes but the first."""
    folded: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(".weight_v"):
            stem = key.removesuffix("_v")
            if stem + "_g" not in state:
                raise mismatch(VOCODER, f"the key {stem}_g is missing")
            v, g = tensor_of(value), tensor_of(state[stem + "_g"])
            axes = list(range(1, v.ndim))
            if g.shape != (v.shape[0], *[1 for _ in axes]):
                raise mismatch(VOCODER, f"{stem}_g has the shape {list(g.shape)}, {stem}_v {list(v.shape)}")
            folded[stem] = v * (g / v.norm(dim=axes, keepdim=True))
        elif not key.endswith(".weight_g") or key.removesuffix("_g") + "_v" not in state:
            folded[key] = tensor_of(value)
    return folded


def fold_snakes(state: Mapping[str, Tensor], log_scale: bool) -> dict[str, Tensor]:
    """``alpha`` and ``beta`` → the factor in the sine and the factor of its square; in float32, once."""
    folded = dict(state)
    for key, value in state.items():
        if key.endswith((".act.alpha", ".act.beta")):
            linear = value.float().exp() if log_scale else value.float()
            folded[key] = linear if key.endswith("alpha") else 1 / (linear + 1e-9)
    return folded


def load(module: nn.Module, state: State, file: str) -> None:
    """Put the arrays in place, strictly.

    Raises:
        EngineUnavailable: naming the first key that is missing, has another shape, or is unknown.
    """
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith(COMPUTED)}
    given = {k: v for k, v in state.items() if not k.endswith(COMPUTED) and not k.startswith(UNUSED)}
    for key, parameter in wanted.items():
        if key not in given:
            raise mismatch(file, f"the key {key} is missing")
        if tuple(given[key].shape) != tuple(parameter.shape):
            raise mismatch(
                file, f"{key} has the shape {list(given[key].shape)} instead of {list(parameter.shape)}"
            )  # fmt: skip
    unknown = next((key for key in given if key not in wanted), None)
    if unknown is not None:
        raise mismatch(file, f"the key {unknown} is unknown")
    tensors = {key: tensor_of(value).float() for key, value in given.items()}
    module.load_state_dict(tensors, strict=False, assign=True)


def mismatch(file: str, what: str) -> EngineUnavailable:
    return EngineUnavailable(f"{file} does not fit {CONFIG}: {what}; {HOW_TO_GET_IT}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder whose configuration has been read and whose files are there."""

    folder: Path
    config: Config

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Look at the folder without reading weights.

        Raises:
            EngineUnavailable: a file is missing or plainly broken; the sentence names it and how to get the model.
        """
        for name in (CONFIG, TEXT_MODEL, GPT, VOCODER):
            if not (folder / name).is_file():
                raise EngineUnavailable(f"{folder / name} is missing; {HOW_TO_GET_IT}")
        try:
            config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise EngineUnavailable(f"{folder / CONFIG} is no YAML; {HOW_TO_GET_IT}") from error
        for section in ("gpt", "bigvgan"):
            if not isinstance(config, dict) or not isinstance(config.get(section), dict):
                raise EngineUnavailable(f"{folder / CONFIG} has no section `{section}`; {HOW_TO_GET_IT}")
        checkpoint = cls(folder, config)
        checkpoint.check()
        return checkpoint

    @property
    def version(self) -> str:
        """As ``1.5.0``; the 1.0 configuration has no such key."""
        major, minor, patch, *_ = [*str(self.config.get("version", "1.0")).split("."), "0", "0"]
        return f"{major}.{minor}.{patch}"

    @property
    def max_mel_tokens(self) -> int:
        return int(self.config["gpt"]["max_mel_tokens"])

    def check(self) -> None:
        """Hold every key and shape against the configuration without reading the weights."""
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
            raise EngineUnavailable(f"{path} is truncated or no sentencepiece model; {HOW_TO_GET_IT}") from error
        if frontend.vocabulary_size > self.config["gpt"]["number_text_tokens"] + 1:
            raise mismatch(TEXT_MODEL, f"it has {frontend.vocabulary_size} tokens")
        return frontend

    def load(self, device: torch.device, dtype: torch.dtype) -> Runtime:
        """Read the weights.

        Raises:
            EngineUnavailable: a file is truncated, or does not fit the configuration.
        """
        gpt_state, vocoder_state = self._states()
        return build(self.config, gpt_state, vocoder_state, device, dtype)

    def _states(self) -> tuple[State, State]:
        return read_state(self.folder / GPT, "model"), read_state(self.folder / VOCODER, "generator")


def shapes_of(state: State) -> State:
    return {key: torch.empty(tuple(value.shape), device="meta") for key, value in state.items()}


def read_state(path: Path, nested: str) -> dict[str, Tensor]:
    """The state dict of a file, bare or under the key ``nested``; mapped into memory where the format allows."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise EngineUnavailable(f"{path} is truncated or no checkpoint; {HOW_TO_GET_IT}") from error
    state = content.get(nested, content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise EngineUnavailable(f"{path} holds no state dict; {HOW_TO_GET_IT}")
    return state
