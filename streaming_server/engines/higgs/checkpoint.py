"""Loads HiggsAudio's model and codec from a folder or from the Hugging Face hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download

from streaming_server.engines.torch.torchaudio import settle_torchaudio
from streaming_server.errors import EngineUnavailable

settle_torchaudio()

from transformers import (  # noqa: E402
    AutoTokenizer,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2TokenizerModel,
)
from transformers.utils import logging as transformers_logging  # noqa: E402

SAMPLE_RATE_HZ = 24000
_CONFIG = "config.json"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The paths of a model and its codec, with checked configurations."""

    model: str
    codec: str

    @classmethod
    def open(cls, model_path: str, audio_tokenizer_path: str) -> Checkpoint:
        """
        Raises:
            EngineUnavailable: the model or the codec is missing or has the wrong type.
        """
        config = _config(model_path, "model", "higgs_audio_v2")
        _config(audio_tokenizer_path, "audio tokenizer", "higgs_audio_v2_tokenizer")
        if config.get("codebook_size", 1024) <= config.get("audio_stream_eos_id", 1025):
            raise EngineUnavailable(f"{model_path}: codebook_size does not include the begin and end codes")
        return cls(model_path, audio_tokenizer_path)

    def load(self, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, Any]:
        """Load the model, its tokenizer, and its codec in float32.

        Raises:
            EngineUnavailable: a file is missing or invalid.
        """
        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model)
            model = _load_complete(HiggsAudioV2ForConditionalGeneration, self.model, dtype)
            codec = _load_complete(HiggsAudioV2TokenizerModel, self.codec, torch.float32)
        except EngineUnavailable:
            raise
        except Exception as error:  # each library has its own exceptions for invalid files
            raise EngineUnavailable(f"{self.model} cannot be loaded: {_first_line(error)}") from error
        if not tokenizer.chat_template:
            raise EngineUnavailable(f"{self.model} has no chat template")
        if codec.config.sample_rate != SAMPLE_RATE_HZ:
            raise EngineUnavailable(f"{self.codec} works at {codec.config.sample_rate} Hz, not at {SAMPLE_RATE_HZ} Hz")
        return model.to(device).eval(), tokenizer, codec.to(device).eval()


def _load_complete(kind: Any, path: str, dtype: torch.dtype) -> Any:
    """Load a model and require all weights; transformers would initialise missing ones at random."""
    model, found = kind.from_pretrained(path, dtype=dtype, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise EngineUnavailable(f"{path}: {len(missing)} weights are missing, for example {missing[0]}")
    return model


def _config(path: str, what: str, model_type: str) -> dict[str, Any]:
    folder = Path(path)
    if folder.is_dir():
        file = folder / _CONFIG
        if not file.is_file():
            raise EngineUnavailable(f"{_CONFIG} is missing in {path}, the folder of HiggsAudio's {what}")
    elif folder.exists() or not _HUB_NAME.fullmatch(path):
        raise EngineUnavailable(f"{path} is neither a folder nor a repository on the Hugging Face hub (owner/name)")
    else:
        try:
            file = Path(hf_hub_download(path, _CONFIG))
        except Exception as error:  # the hub's client raises many types, for network errors and for invalid names
            raise EngineUnavailable(
                f"HiggsAudio's {what} {path} is not a folder and cannot be downloaded from the Hugging Face hub: "
                f"{_first_line(error)}"
            ) from error
    try:
        config = json.loads(file.read_text())
        found = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise EngineUnavailable(f"{file} is not a valid configuration") from error
    if found != model_type:
        raise EngineUnavailable(f"{path} is a model of type {found}; HiggsAudio's {what} has the type {model_type}")
    return dict(config)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
