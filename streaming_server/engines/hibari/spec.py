"""The registry's entry of hibari."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

from pydantic import Field

from streaming_server.engines.base import Engine, EngineOptions, EngineSpec
from streaming_server.errors import EngineUnavailable

log = logging.getLogger(__name__)


class HibariOptions(EngineOptions):
    """hibari runs on the CPU and has no precision to choose."""

    device: Annotated[Literal["auto", "cpu"], Field(validation_alias="DEVICE", description="Where the model runs")] = (
        "auto"
    )
    precision: Annotated[
        Literal["auto"], Field(validation_alias="PRECISION", description="Of the model's arithmetic")
    ] = "auto"


def create(options: HibariOptions) -> Engine:
    from streaming_server.engines.espeak.engine import EspeakEngine
    from streaming_server.engines.hibari.engine import HibariEngine

    espeak: Engine | None = None
    try:
        espeak = EspeakEngine()
    except EngineUnavailable as error:
        log.info("espeak not available, only Latin script is spoken: %s", error)
    return HibariEngine(espeak)


ENGINE = EngineSpec(
    name="hibari",
    title="a neural English voice, no model needed; other scripts by espeak-ng",
    options=HibariOptions,
    create=create,
    extra="hibari",
    companions=("espeak",),
)
