from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from streaming_server.engines.indextts2.runtime import Runtime
from tests.engines.indextts2 import parity
from tests.engines.indextts2.tiny import make_checkpoint


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors do not benefit from more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def runtimes() -> dict[str, Runtime]:
    """The models the fixtures were made with, by version."""
    return {version: parity.build_runtime(version) for version in ("2.0", "2.5")}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny folders of both versions; not to be written to."""
    folder = tmp_path_factory.mktemp("indextts2")
    return {version: make_checkpoint(folder / version, version) for version in ("2.0", "2.5")}
