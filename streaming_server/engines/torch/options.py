"""Options that the model runtimes share. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from streaming_server.engines.base import EngineOptions

Device = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["fp16", "bf16", "fp32"]

ModelDir = Annotated[Path, Field(validation_alias="MODEL_DIR", description="Folder of the model")]
LookAhead = Annotated[
    Annotated[int, Field(ge=1, le=31)] | Literal["exact"],
    Field(
        validation_alias="LOOK_AHEAD",
        description="Codes that a token stream of a model waits for beyond what it makes sound of: `exact` (as good as "
        "the whole) or a number; 4 speaks earliest",
    ),
]


class TorchOptions(EngineOptions):
    """Where and how a model computes."""

    device: Annotated[
        Device,
        Field(validation_alias="DEVICE", description="Where the model runs: `auto`, `cuda`, `mps` or `cpu`"),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp16", "bf16", "fp32"],
        Field(
            validation_alias="PRECISION",
            description="Of the model's arithmetic: `auto` (on CUDA fp16, bf16 for HiggsAudio, else fp32), `fp16`, "
            "`bf16` or `fp32`",
        ),
    ] = "auto"
    voice_cache: Annotated[
        int, Field(ge=1, validation_alias="VOICE_CACHE", description="Voices whose analysis is kept in memory")
    ] = 64

    @property
    def chosen_precision(self) -> Precision | None:
        """None leaves it to the engine."""
        return None if self.precision == "auto" else self.precision
