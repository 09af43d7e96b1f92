"""Registry entry of IndexTTS 2.0 and 2.5."""

from __future__ import annotations

from streaming_server.engines.base import Engine, EngineSpec
from streaming_server.engines.indextts.spec import major_version, no_model
from streaming_server.engines.indextts2.options import IndexTTS2Options


def create(options: IndexTTS2Options) -> Engine:
    from streaming_server.engines.indextts2.engine import IndexTTS2Engine

    return IndexTTS2Engine(options)


def _has_model(options: IndexTTS2Options) -> bool:
    return major_version(options.model_dir) == "2"


ENGINE = EngineSpec(
    name="indextts2",
    title="IndexTTS 2",
    options=IndexTTS2Options,
    create=create,
    recognises=_has_model,
    problem=lambda options: "" if _has_model(options) else no_model(options.model_dir, "indextts-2"),
    model_variable="MODEL_DIR",
    extra="indextts2",
    family="indextts",
)
