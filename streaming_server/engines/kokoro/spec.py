"""Registry entry of Kokoro-82M."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from streaming_server.engines.base import Engine, EngineOptions, EngineSpec
from streaming_server.engines.kokoro.folder import problem


class KokoroOptions(EngineOptions):
    """Options of Kokoro-82M."""

    model_dir: Annotated[Path, Field(validation_alias="MODEL_DIR", description="Folder of the model")] = Path(
        "checkpoints/kokoro"
    )
    device: Annotated[
        Literal["auto", "cuda", "cpu"], Field(validation_alias="DEVICE", description="Device of the model")
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "int8"],
        Field(validation_alias="PRECISION", description="Precision of the loaded model file"),
    ] = "auto"


def create(options: KokoroOptions) -> Engine:
    from streaming_server.engines.kokoro.engine import KokoroEngine

    return KokoroEngine(model_dir=options.model_dir, device=options.device, precision=options.precision)


ENGINE = EngineSpec(
    name="kokoro",
    title="Kokoro-82M",
    options=KokoroOptions,
    create=create,
    recognises=lambda options: not problem(options.model_dir),
    problem=lambda options: problem(options.model_dir),
    extra="kokoro",
)
