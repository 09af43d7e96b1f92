"""Registry entry of IndexTTS 2.0 and 2.5."""

from __future__ import annotations

from streaming_server.engines.base import Engine
from streaming_server.engines.indextts.spec import model_spec
from streaming_server.engines.indextts2.options import IndexTTS2Options


def create(options: IndexTTS2Options) -> Engine:
    from streaming_server.engines.indextts2.engine import IndexTTS2Engine

    return IndexTTS2Engine(options)


ENGINE = model_spec(
    lambda version: version == "2",
    "indextts-2",
    name="indextts2",
    title="IndexTTS 2",
    options=IndexTTS2Options,
    create=create,
    extra="indextts2",
    family="indextts",
)
