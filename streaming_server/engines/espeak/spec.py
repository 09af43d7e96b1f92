"""The registry's entry of espeak-ng."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from streaming_server.engines.base import Engine, EngineOptions, EngineSpec


class EspeakOptions(EngineOptions):
    """espeak-ng runs on the CPU and has no precision to choose."""

    device: Annotated[Literal["auto", "cpu"], Field(validation_alias="DEVICE", description="Where the model runs")] = (
        "auto"
    )
    precision: Annotated[
        Literal["auto"], Field(validation_alias="PRECISION", description="Of the model's arithmetic")
    ] = "auto"


def create(options: EspeakOptions) -> Engine:
    from streaming_server.engines.espeak.engine import EspeakEngine

    return EspeakEngine()


ENGINE = EngineSpec(
    name="espeak", title="espeak-ng, no model needed", options=EspeakOptions, create=create, extra="espeak"
)
