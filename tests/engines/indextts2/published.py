"""The sizes of the real 2.0 and 2.5: configuration, keys and shapes, without weights."""

from __future__ import annotations

import gzip
from functools import cache
from typing import Any

import yaml

from tests.engines.indextts2.acoustic_parity import DATA

VERSIONS = ("2.0", "2.5")


def config(version: str) -> dict[str, Any]:
    """With the sections of the external models, ``bigvgan`` and ``w2vbert``; 2.5 differs in its text tokens only."""
    content: dict[str, Any] = yaml.safe_load((DATA / "config_2.0.yaml").read_text(encoding="utf-8"))
    if version == "2.5":
        content["version"] = 2.5
        content["gpt"]["number_text_tokens"] = 60_509
    return content


@cache
def shapes(version: str) -> dict[str, dict[str, list[int]]]:
    """Shapes by key of ``gpt``, ``s2mel``, ``codec``, ``campplus``, ``bigvgan``, ``w2vbert``."""
    codec = {"2.0": "repcodec_2.0", "2.5": "codec_2.5"}[version]
    files = {
        "gpt": f"gpt_{version}", "s2mel": f"s2mel_{version}", "codec": codec,
        "campplus": "campplus", "bigvgan": "bigvgan_v2", "w2vbert": "w2vbert_default",
    }  # fmt: skip
    return {name: read(file) for name, file in files.items()}


def read(file: str) -> dict[str, list[int]]:
    lines = gzip.decompress((DATA / f"state_dict_{file}.tsv.gz").read_bytes()).decode().splitlines()
    rows = (line.split("\t") for line in lines)
    return {key: [int(size) for size in shape.split("x") if size != "scalar"] for key, shape, _ in rows}
