"""Functions over static buffers, recorded as CUDA graphs: one launch in place of a thousand.

Without CUDA the same functions are called, so that all but the recording runs on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

WARM_UPS = 3
"""Runs before recording, in which libraries choose their kernels and allocate what they keep."""

HIGH_PRIORITY = -1
"""Of a stream whose kernels run before those of others, as `torch.cuda.Stream` takes it."""


class Graphs:
    """Recorded functions by key, all in one memory pool. A key that was never recorded runs as it is.

    Each instance captures on a stream of its own, on which it also warms up: cuBLAS keeps one workspace a stream, and
    two graphs that share one must not run at the same time.

    Args:
        device: Where the functions run.
        priority: Of the recorded kernels.
    """

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self._device = device
        self._recorded: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # It plans each shape of attention when it first meets it, also in an eager run beside recorded ones.
            torch.backends.cuda.enable_cudnn_sdp(False)
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._recorded

    def record(self, key: Hashable, function: Callable[[], None], *, searches: bool = True) -> None:
        """Run the function, and on CUDA keep what it launched; it must read and write static buffers only.

        Args:
            key: Names the graph.
            function: What to record.
            searches: Whether cuDNN measures its algorithms, which takes seconds for a vocoder; else it estimates.

        Raises:
            ValueError: the key is recorded; its graph belongs to other buffers, and may be running.
        """
        if key in self._recorded:
            raise ValueError(f"the graph {key!r} is recorded already")
        self._recorded[key] = self._record(function, searches)

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        graph = self._recorded.get(key)
        if graph is None:
            function()
        else:
            graph.replay()

    def _record(self, function: Callable[[], None], searches: bool) -> torch.cuda.CUDAGraph | None:
        if self._stream is None:
            function()
            return None
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with searching_algorithms() if searches else nullcontext():
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS if searches else 1):
                    function()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                function()
        current.wait_stream(self._stream)
        return graph


@contextmanager
def searching_algorithms() -> Iterator[None]:
    """Let cuDNN measure its algorithms: worth it for a shape that is recorded, not for one that may not come again."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
