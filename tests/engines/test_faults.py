"""What an error of the device means for the request and for the process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from streaming_server.engines.torch.faults import device_errors
from streaming_server.errors import InsufficientMemory

CPU = torch.device("cpu")
CONTEXT_HAS_NO_MEMORY = torch.AcceleratorError(
    "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the documentation for more information."
)
"""From calls outside torch's allocator: a context, a graph, pinned memory."""


def test_no_memory_outside_the_allocator_ends_the_request_alone() -> None:
    released: list[bool] = []
    with pytest.raises(InsufficientMemory), device_errors(CPU, lambda: released.append(True)):
        raise CONTEXT_HAS_NO_MEMORY
    assert released


def test_a_device_without_memory_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise CONTEXT_HAS_NO_MEMORY

    monkeypatch.setattr(torch, "ones", full)
    with pytest.raises(ValueError, match="of the request"), device_errors(CPU, lambda: None):
        raise ValueError("of the request")
