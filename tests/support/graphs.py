"""Stands in for CUDA graphs: an emulator that replays a step's operators, and fake CUDA tensors for real sizes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streaming_server.engines.indextts2 import flow
from streaming_server.engines.torch import decoding, windows
from streaming_server.engines.torch.graphs import WARM_UPS, Graphs

CUDA, META = 1, 14
"""Numbers of device types."""

HOST_READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
"""Operators whose result the host must wait for: a capture fails at them."""


class NotRecordableError(Exception):
    """A step does what a CUDA graph cannot hold."""


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def require_recordable(operator: Any) -> None:
    """
    Raises:
        NotRecordableError: the operator reads values back, or draws random numbers.
    """
    if operator.overloadpacket.__name__ in HOST_READS:
        raise NotRecordableError(f"{operator}: the host reads a value")
    draws = torch.Tag.nondeterministic_seeded in operator.tags
    if draws and "scaled_dot_product" not in str(operator):  # whose dropout is 0
        raise NotRecordableError(f"{operator}: random numbers inside a recorded step")


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the operators of one run with their arguments and results; `replay` runs them on the same memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, Sequence[Any], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        require_recordable(func)
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        is_view = not func._schema.is_mutable and all(
            tensor.untyped_storage().data_ptr() in given for tensor in tensors(result)
        )
        if not is_view:  # a view reads what its memory then holds
            self._calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Run every operator with the Python values of the recorded run; fresh results go where they went then."""
        for func, args, kwargs, captured in self._calls:
            result = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for kept, fresh in zip(tensors(captured), tensors(result), strict=True):
                    kept.copy_(fresh)


class EmulatedGraphs(Graphs):
    """Records and replays on the CPU as CUDA does: what Python decides in a step is decided once."""

    replays: ClassVar[int] = 0
    """Of all instances."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        super().__init__(device, priority)
        self._tapes: dict[Hashable, Tape] = {}

    def record(self, key: Hashable, function: Callable[[], None], *, searches: bool = True) -> None:
        super().record(key, function, searches=searches)
        for _ in range(WARM_UPS - 1):
            function()
        tape = Tape()
        with tape:
            function()
        self._tapes[key] = tape

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        if key not in self._tapes:
            function()
            return
        EmulatedGraphs.replays += 1
        self._tapes[key].replay()


class OnlyCuda(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where a step touches a tensor on the host, reads a value back or draws; counts the operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        require_recordable(func)
        result = func(*args, **(kwargs or {}))
        for tensor in tensors((args, kwargs, result)):
            if tensor.device.type != "cuda":
                raise NotRecordableError(f"{func}: a tensor {tuple(tensor.shape)} on the {tensor.device.type}")
        self.operators += 1
        return result


class FakeCudaGraphs(Graphs):
    """Runs each step once over fake CUDA tensors when it is recorded, strictly."""

    recorded: ClassVar[dict[Hashable, int]] = {}
    """Operators by key, of all instances."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        assert device.type == "cuda", device
        super().__init__(torch.device("cpu"), priority)

    def record(self, key: Hashable, function: Callable[[], None], *, searches: bool = True) -> None:
        with OnlyCuda() as checked:
            super().record(key, function, searches=searches)
        self.recorded[key] = checked.operators


@contextmanager
def cuda_guard() -> Iterator[None]:
    """Let fake tensors be on a CUDA device in a torch without CUDA: its place for a device guard gets the no-op one."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[CUDA]
    guards[CUDA] = before or guards[META]
    try:
        yield
    finally:
        guards[CUDA] = before


def substitute(monkeypatch: pytest.MonkeyPatch, graphs: type[Graphs]) -> None:
    """Let the runtimes that are built from now on use these graphs."""
    for module in (decoding, flow, windows):
        monkeypatch.setattr(module, "Graphs", graphs)
