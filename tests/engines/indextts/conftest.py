from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from streaming_server.engines.indextts.runtime import Runtime
from tests.engines.indextts import parity
from tests.engines.indextts.tiny import make_checkpoint


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors do not benefit from more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    """The model the fixtures were made with."""
    return parity.build_runtime()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint folder; not to be written to."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))
