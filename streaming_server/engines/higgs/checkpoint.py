"""HiggsAudio's model and codec, from a folder or from the Hugging Face hub.

Knows what a checkpoint consists of and how one is broken; not what is done with it.
"""

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
    """Where a model and its codec are; their configurations have been read."""

    model: str
    codec: str

    @classmethod
    def open(cls, model_path: str, audio_tokenizer_path: str) -> Checkpoint:
        """
        Raises:
            EngineUnavailable: one of them is not there, or is something else.
        """
        config = _config(model_path, "model", "higgs_audio_v2")
        _config(audio_tokenizer_path, "audio tokenizer", "higgs_audio_v2_tokenizer")
        if config.get("codebook_size", 1024) <= config.get("audio_stream_eos_id", 1025):
            raise EngineUnavailable(f"{model_path}: its codebook_size leaves out the marks of begin and end")
        return cls(model_path, audio_tokenizer_path)

    def load(self, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, Any]:
        """The model, its tokenizer and its codec, the last in full precision.

        Raises:
            EngineUnavailable: something is missing or broken.
        """
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model)
            model = _whole(HiggsAudioV2ForConditionalGeneration, self.model, dtype)
            codec = _whole(HiggsAudioV2TokenizerModel, self.codec, torch.float32)
        except EngineUnavailable:
            raise
        except Exception as error:  # what is wrong with a file decides of which library's kind it is
            raise EngineUnavailable(f"{self.model} cannot be loaded: {_first_line(error)}") from error
        if not tokenizer.chat_template:
            raise EngineUnavailable(f"{self.model} has no chat template")
        if codec.config.sample_rate != SAMPLE_RATE_HZ:
            raise EngineUnavailable(f"{self.codec} works at {codec.config.sample_rate} Hz, not at {SAMPLE_RATE_HZ} Hz")
        return model.to(device).eval(), tokenizer, codec.to(device).eval()


def _whole(kind: Any, path: str, dtype: torch.dtype) -> Any:
    """A model of which every weight was found; transformers would make up the others."""
    model, found = kind.from_pretrained(path, dtype=dtype, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise EngineUnavailable(f"{path} lacks {len(missing)} weights, {missing[0]} among them")
    return model


def _config(path: str, what: str, model_type: str) -> dict[str, Any]:
    folder = Path(path)
    if folder.is_dir():
        file = folder / _CONFIG
        if not file.is_file():
            raise EngineUnavailable(f"{_CONFIG} is missing in {path}, which should be HiggsAudio's {what}")
    elif folder.exists() or not _HUB_NAME.fullmatch(path):
        raise EngineUnavailable(f"{path} is neither a folder nor a name on the Hugging Face hub (owner/name)")
    else:
        try:
            file = Path(hf_hub_download(path, _CONFIG))
        except Exception as error:  # the hub's client has a dozen kinds, for the network and for names
            raise EngineUnavailable(
                f"HiggsAudio's {what} {path} is no folder here and cannot be had from the Hugging Face hub: "
                f"{_first_line(error)}"
            ) from error
    try:
        config = json.loads(file.read_text())
        found = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise EngineUnavailable(f"{file} is no configuration that can be read") from error
    if found != model_type:
        raise EngineUnavailable(f"{path} holds a model of type {found}; HiggsAudio's {what} is {model_type}")
    return dict(config)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
