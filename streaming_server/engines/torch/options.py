"""Options that the model runtimes share. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from streaming_server.engines.base import EngineOptions

Device = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["fp16", "bf16", "fp32"]

ModelDir = Annotated[
    Path,
    Field(
        validation_alias="MODEL_DIR",
        description="Folder of the model; by default `checkpoints/kokoro` for Kokoro and `checkpoints/pocket` for "
        "Pocket TTS",
    ),
]
LookAhead = Annotated[
    Annotated[int, Field(ge=1, le=31)] | Literal["exact"],
    Field(
        validation_alias="LOOK_AHEAD",
        description="Look-ahead of token streaming, in codes: `exact` (same audio as without streaming) or a number "
        "from 1 to 31; 4 gives the lowest latency",
    ),
]


def whole_number(value: object) -> object:
    """A variable's text as a number, for a field that takes some numbers only."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class TorchOptions(EngineOptions):
    """Device, precision and cache size of a model."""

    device: Annotated[
        Device,
        Field(validation_alias="DEVICE", description="Device of the model: `auto`, `cuda`, `mps` or `cpu`"),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp16", "bf16", "fp32"],
        Field(
            validation_alias="PRECISION",
            description="Precision of the model: `auto` (on CUDA fp16, for HiggsAudio bf16; otherwise fp32; for Kokoro "
            "on a CPU int8), `fp16`, `bf16`, `fp32`, or `int8` (Kokoro only); a value that the engine lacks stops the "
            "start",
        ),
    ] = "auto"
    voice_cache: Annotated[
        int, Field(ge=1, validation_alias="VOICE_CACHE", description="Number of voice analyses cached in memory")
    ] = 64

    @property
    def chosen_precision(self) -> Precision | None:
        """The configured precision; None if the engine chooses."""
        return None if self.precision == "auto" else self.precision
