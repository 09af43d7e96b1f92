"""Loads the official model folders of 2.0 and 2.5 and the four external models.

An error names the missing file and says how to get it. Opening a folder reads shapes only; ``load`` reads the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from streaming_server.engines.indextts.checkpoint import Config, read_config, require_sections
from streaming_server.engines.indextts2.checkpoint import HOW_TO_GET_IT, build, version_of
from streaming_server.engines.indextts2.reading import LanguageReader, PlainReader, Reader
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.torch.weights import Misfit, read_content, translate_errors
from streaming_server.errors import EngineUnavailable

CACHE = "hf_cache"
BPE, TIKTOKEN = "bpe.model", "multilingual_zh_ja_yue_char_del.tiktoken"
CLASSIFIER = "qwen0.6bemo4-merge"
"""Folder of the optional model that converts a description of an emotion to scores."""

OWN_FILES = {
    "gpt": "gpt.pth",
    "s2mel": "s2mel.pth",
    "feat1": "feat1.pt",
    "feat2": "feat2.pt",
    "stats": "wav2vec2bert_stats.pt",
}


@dataclass(frozen=True, slots=True)
class Place:
    """The path of an external file, with the command that downloads it."""

    path: Path
    download: str
    is_shared: bool = True
    """Whether it is in the folder of external models; else in the model folder."""

    def require(self) -> None:
        if not self.path.is_file():
            or_set = ", or set INDEXTTS2_EXTERNAL_MODELS_DIR to the folder that has it" if self.is_shared else ""
            raise EngineUnavailable(f"{self.path} is missing; get it with `{self.download}`{or_set}")


def places(folder: Path, external: Path | None, version: str) -> dict[str, Place]:
    """The external files by name; ``external`` replaces the official implementation's folder below the model."""
    cache = external or folder / CACHE
    w2vbert, bigvgan = cache / "w2v-bert-2.0", cache / "bigvgan"
    get = "hf download"
    w2vbert_download = f"{get} facebook/w2v-bert-2.0 config.json model.safetensors --local-dir {w2vbert}"
    bigvgan_download = (
        f"{get} nvidia/bigvgan_v2_22khz_80band_256x config.json bigvgan_generator.pt --local-dir {bigvgan}"
    )
    found = {
        "w2vbert_config": Place(w2vbert / "config.json", w2vbert_download),
        "w2vbert": Place(w2vbert / "model.safetensors", w2vbert_download),
        "bigvgan_config": Place(bigvgan / "config.json", bigvgan_download),
        "bigvgan": Place(bigvgan / "bigvgan_generator.pt", bigvgan_download),
        "campplus": Place(
            cache / "campplus_cn_common.bin", f"{get} funasr/campplus campplus_cn_common.bin --local-dir {cache}"
        ),
    }
    if version == "2.5":
        own = f"{get} IndexTeam/IndexTTS-2.5 codec.pth --local-dir {folder}"
        return found | {"codec": Place(folder / "codec.pth", own, is_shared=False)}
    codec = cache / "semantic_codec_model.safetensors"
    if not codec.exists():
        codec = cache / "semantic_codec" / "model.safetensors"  # the path that the command uses
    maskgct = f"{get} amphion/MaskGCT semantic_codec/model.safetensors --local-dir {cache}"
    return found | {"codec": Place(codec, maskgct)}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder with all files present and parsed configurations."""

    folder: Path
    config: Config
    """``config.yaml`` with the configurations of w2v-BERT and BigVGAN as ``w2vbert`` and ``bigvgan``."""
    version: str
    """``2.0`` or ``2.5``."""
    places: Mapping[str, Place]

    @classmethod
    def open(cls, folder: Path, external: Path | None = None) -> Checkpoint:
        """Check the folder without reading weights; ``external`` as in `places`.

        Raises:
            EngineUnavailable: a file is missing or invalid; the message names it and says how to get it.
        """
        config = read_config(folder, HOW_TO_GET_IT["2.0"])
        version = version_of(config)
        how = HOW_TO_GET_IT[version]
        for name in (TIKTOKEN if version == "2.5" else BPE, *OWN_FILES.values()):
            if not (folder / name).is_file():
                raise EngineUnavailable(f"{folder / name} is missing; {how}")
        require_sections(config, folder, ("gpt", "s2mel", "semantic_codec"), how)
        found = places(folder, external, version)
        for place in found.values():
            place.require()
        parts = {name: read_json(found[f"{name}_config"]) for name in ("w2vbert", "bigvgan")}
        checkpoint = cls(folder, {**config, **parts}, version, found)
        build(checkpoint.config, checkpoint.states(only_shapes=True), device="meta")
        return checkpoint

    @property
    def model_version(self) -> str:
        """The version, such as ``2.0.0``."""
        return f"{self.version}.0"

    @property
    def max_mel_tokens(self) -> int:
        return int(self.config["gpt"]["max_mel_tokens"])

    @property
    def classifier(self) -> Path | None:
        """Folder of the emotion classifier; None if it does not exist."""
        folder = self.folder / CLASSIFIER
        return folder if (folder / "config.json").is_file() else None

    def reader(self, language: str | None) -> Reader:
        """Read the vocabulary.

        Raises:
            EngineUnavailable: it is truncated, or has more tokens than the model.
        """
        path = self.folder / (TIKTOKEN if self.version == "2.5" else BPE)
        how = HOW_TO_GET_IT[self.version]
        try:
            reader: Reader = LanguageReader(path, language) if self.version == "2.5" else PlainReader(path)
        except (RuntimeError, OSError, ValueError) as error:
            raise EngineUnavailable(f"{path} is truncated or not a vocabulary; {how}") from error
        with translate_errors(how):
            if reader.vocabulary_size > self.config["gpt"]["number_text_tokens"] + 1:
                raise Misfit.of(path.name, f"it has {reader.vocabulary_size} tokens")
        return reader

    def load(self, device: torch.device, dtype: torch.dtype) -> Runtime:
        """Read the weights.

        Raises:
            EngineUnavailable: a file is truncated, or does not fit the configuration.
        """
        return build(self.config, self.states(), device, dtype)

    def states(self, only_shapes: bool = False) -> dict[str, Any]:
        """Read the files, under the names that `build` takes; with ``only_shapes``, as tensors on the meta device.

        Raises:
            EngineUnavailable: a file is truncated or has the wrong format.
        """
        paths = {name: self.folder / file for name, file in OWN_FILES.items()}
        paths |= {name: self.places[name].path for name in ("codec", "campplus", "bigvgan", "w2vbert")}
        with translate_errors(HOW_TO_GET_IT[self.version]):
            return {name: (read_shapes if only_shapes else read)(path) for name, path in paths.items()}


def read_json(place: Place) -> dict[str, Any]:
    try:
        content = json.loads(place.path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineUnavailable(f"{place.path} is not valid JSON; get it again with `{place.download}`") from error
    if not isinstance(content, dict):
        raise EngineUnavailable(f"{place.path} is not a JSON object; get it again with `{place.download}`")
    return content


def read(path: Path) -> Any:
    """Read a file in the format of torch or safetensors, tensors and containers only.

    Raises:
        Misfit: the file is truncated, or contains code.
    """
    return read_tensors(path, lambda file, key: file.get_tensor(key)) or read_content(path)


def read_shapes(path: Path) -> Any:
    """Like ``read``, with tensors on the meta device."""

    def shape(file: Any, key: str) -> Tensor:
        return torch.empty(file.get_slice(key).get_shape(), device="meta")

    return read_tensors(path, shape) or without_memory(read_content(path))


def read_tensors(path: Path, tensor: Callable[[Any, str], Tensor]) -> dict[str, Tensor]:
    """Apply ``tensor`` to each entry of a safetensors file; empty for other file types."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tensor(file, key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Misfit(f"{path} is truncated or not a safetensors file") from error


def without_memory(content: Any) -> Any:
    if isinstance(content, Tensor):
        return torch.empty(content.shape, device="meta")
    if isinstance(content, Mapping):
        return {key: without_memory(value) for key, value in content.items()}
    return content
