"""Registry entry of espeak-ng."""

from __future__ import annotations

from streaming_server.engines.base import CpuOptions, Engine, EngineSpec


def create(options: CpuOptions) -> Engine:
    from streaming_server.engines.espeak.engine import EspeakEngine

    return EspeakEngine()


ENGINE = EngineSpec(name="espeak", title="espeak-ng, no download", options=CpuOptions, create=create, extra="espeak")
