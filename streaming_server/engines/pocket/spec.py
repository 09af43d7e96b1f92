"""Registry entry of Pocket TTS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from streaming_server.engines.base import Engine, EngineOptions, EngineSpec
from streaming_server.engines.pocket.folder import AUTO, find_languages, problem


class PocketOptions(EngineOptions):
    """Options of Pocket TTS, which runs on the CPU in float32."""

    model_dir: Annotated[Path, Field(validation_alias="MODEL_DIR", description="Folder of the model")] = Path(
        "checkpoints/pocket"
    )
    language: Annotated[
        str,
        Field(
            validation_alias="POCKET_LANGUAGE",
            description="Language of Pocket TTS: a folder in the model's `languages/`, or `auto` (English if there)",
        ),
    ] = AUTO
    device: Annotated[Literal["auto", "cpu"], Field(validation_alias="DEVICE", description="Device of the model")] = (
        "auto"
    )
    precision: Annotated[
        Literal["auto", "fp32"], Field(validation_alias="PRECISION", description="Precision of the model")
    ] = "auto"


def create(options: PocketOptions) -> Engine:
    from streaming_server.engines.pocket.engine import PocketEngine

    return PocketEngine(model_dir=options.model_dir, language=options.language)


ENGINE = EngineSpec(
    name="pocket",
    title="Pocket TTS, voice cloning on the CPU",
    options=PocketOptions,
    create=create,
    recognises=lambda options: bool(find_languages(options.model_dir)),
    problem=lambda options: problem(options.model_dir, options.language),
    extra="pocket",
)
