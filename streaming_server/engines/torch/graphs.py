"""One call instead of a thousand launches: functions over static buffers, recorded as CUDA graphs.

Where there is no CUDA the very same functions are called, so that all but the recording runs on every machine. This
module does not know what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

WARM_UPS = 3
"""Runs before recording, in which libraries choose their kernels and allocate what they keep."""


class Graphs:
    """Recorded functions by key, all in one memory pool. A key that was never recorded runs as it is."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def record(self, key: Hashable, function: Callable[[], None]) -> None:
        """Run the function, and on CUDA keep what it launched; it must read and write static buffers only."""
        if self._device.type != "cuda":
            function()
            return
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        self._graphs[key] = graph

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        graph = self._graphs.get(key)
        if graph is None:
            function()
        else:
            graph.replay()
