from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors do not benefit from more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a tiny model and its codec; not to be written to."""
    # Every worker collects this module; few run its tests, for which alone transformers is imported.
    from tests.engines.higgs.tiny import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("higgs"))
