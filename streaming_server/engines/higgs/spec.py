"""The registry's entry of HiggsAudio v2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from streaming_server.engines.base import Engine, EngineSpec
from streaming_server.engines.torch.options import LookAhead, TorchOptions


class HiggsOptions(TorchOptions):
    """Where the model and its codec are."""

    model_path: Annotated[
        str,
        Field(
            validation_alias="MODEL_PATH",
            description="HiggsAudio's model: a folder, or a name on the Hugging Face hub",
        ),
    ] = "bosonai/higgs-audio-v2-generation-3B-base"
    audio_tokenizer_path: Annotated[
        str, Field(validation_alias="AUDIO_TOKENIZER_PATH", description="HiggsAudio's codec, likewise")
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


ENGINE = EngineSpec(
    name="higgs",
    title="HiggsAudio v2",
    options=HiggsOptions,
    create=create,
    recognises=lambda options: (Path(options.model_path) / "config.json").is_file(),
    extra="higgs",
)
