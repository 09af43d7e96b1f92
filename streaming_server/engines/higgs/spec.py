"""Registry entry of HiggsAudio v2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from streaming_server.engines.base import Engine, EngineSpec
from streaming_server.engines.torch.options import LookAhead, TorchOptions

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class HiggsOptions(TorchOptions):
    """Options of HiggsAudio v2."""

    model_path: Annotated[
        str,
        Field(
            validation_alias="MODEL_PATH",
            description="HiggsAudio's model: a folder, or a repository on the Hugging Face hub",
        ),
    ] = "bosonai/higgs-audio-v2-generation-3B-base"
    audio_tokenizer_path: Annotated[
        str,
        Field(
            validation_alias="AUDIO_TOKENIZER_PATH", description="HiggsAudio's audio codec: a folder or a repository"
        ),
    ] = "bosonai/higgs-audio-v2-tokenizer"
    look_ahead: LookAhead = "exact"


def create(options: HiggsOptions) -> Engine:
    from streaming_server.engines.higgs.engine import HiggsEngine

    return HiggsEngine(
        model_path=options.model_path,
        audio_tokenizer_path=options.audio_tokenizer_path,
        device=options.device,
        precision=options.chosen_precision,
        look_ahead=options.look_ahead,
        voice_cache_size=options.voice_cache,
    )


def _is_folder(path: str) -> bool:
    return (Path(path) / "config.json").is_file()


def _problem(options: HiggsOptions) -> str:
    path = Path(options.model_path)
    is_hub_name = _HUB_NAME.fullmatch(options.model_path) and not Path(path.parts[0]).exists()
    if _is_folder(options.model_path) or is_hub_name:
        return ""
    state = "the folder has no config.json" if path.is_dir() else "neither a folder nor a repository on the hub"
    return f"MODEL_PATH={path}: {state}; get the model with: .venv/bin/streaming-server download higgs"


ENGINE = EngineSpec(
    name="higgs",
    title="HiggsAudio v2",
    options=HiggsOptions,
    create=create,
    recognises=lambda options: "model_path" in options.model_fields_set or _is_folder(options.model_path),
    problem=_problem,
    model_variable="MODEL_PATH",
    extra="higgs",
)
