"""Registry entry of hibari."""

from __future__ import annotations

import logging

from streaming_server.engines.base import CpuOptions, Engine, EngineSpec
from streaming_server.errors import EngineUnavailable

log = logging.getLogger(__name__)


def create(options: CpuOptions) -> Engine:
    from streaming_server.engines.espeak.engine import EspeakEngine
    from streaming_server.engines.hibari.engine import HibariEngine

    espeak: Engine | None = None
    try:
        espeak = EspeakEngine()
    except EngineUnavailable as error:
        log.info("espeak not available, only Latin script is supported: %s", error)
    return HibariEngine(espeak)


ENGINE = EngineSpec(
    name="hibari",
    title="neural English, no download; other scripts by espeak-ng",
    options=CpuOptions,
    create=create,
    extra="hibari",
    companions=("espeak",),
)
