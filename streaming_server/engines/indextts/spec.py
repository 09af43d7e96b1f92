"""Registry entry of IndexTTS 1.0 and 1.5."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from streaming_server.engines.base import Engine, EngineSpec
from streaming_server.engines.torch.options import LookAhead, ModelDir, TorchOptions, whole_number

_VERSION = re.compile(r"^version: *['\"]?(\d)", re.MULTILINE)


class IndexTTSOptions(TorchOptions):
    """Options of IndexTTS 1.0 and 1.5."""

    model_dir: ModelDir = Path("checkpoints")
    look_ahead: LookAhead = "exact"
    first_chunk: Annotated[
        Literal[1, 2, 4, 8, 16, 32],
        BeforeValidator(whole_number),
        Field(
            validation_alias="FIRST_CHUNK",
            description="Size of the first chunk of token streaming, in codes of 43 ms: `1`, `2`, `4`, `8`, `16` or "
            "`32`; the next ones double, up to 32",
        ),
    ] = 4


def major_version(folder: Path) -> str | None:
    """The first digit of the version in ``config.yaml``; None if there is no such file.

    The file is read without a YAML parser, because the result decides whether one is installed. The configuration of
    1.0 has no version.
    """
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = _VERSION.search(text)
    return found[1] if found else "1"


def no_model(folder: Path, model: str) -> str:
    """Error message for a folder without ``model``, a name of ``streaming-server download``."""
    state = "does not exist" if not folder.is_dir() else f"does not contain {model}"
    command = f".venv/bin/streaming-server download {model} --dir {folder}"
    return f"MODEL_DIR={folder}: the folder {state}; get the model with: {command}"


def create(options: IndexTTSOptions) -> Engine:
    from streaming_server.engines.indextts.engine import IndexTTSEngine

    return IndexTTSEngine(
        model_dir=options.model_dir,
        device=options.device,
        precision=options.chosen_precision,
        look_ahead=options.look_ahead,
        first_chunk=options.first_chunk,
        voice_cache_size=options.voice_cache,
    )


def model_spec(is_ours: Callable[[str], bool], download: str, **fields: Any) -> EngineSpec[Any]:
    """Return the registry entry of a model family, whose folder is recognised by the major version."""

    def problem(options: Any) -> str:
        version = major_version(options.model_dir)
        return "" if version and is_ours(version) else no_model(options.model_dir, download)

    return EngineSpec(
        recognises=lambda options: not problem(options), problem=problem, model_variable="MODEL_DIR", **fields
    )


ENGINE = model_spec(
    lambda version: version != "2",
    "indextts-1.5",
    name="indextts",
    title="IndexTTS",
    options=IndexTTSOptions,
    create=create,
    extra="indextts",
)
