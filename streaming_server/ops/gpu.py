"""The NVIDIA GPUs that are visible to this process, as reported by the driver (NVML)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    utilization: float | None
    """0.0-1.0."""
    memory_used_mib: float | None
    memory_total_mib: float | None


def gpus() -> list[Gpu]:
    """Return the GPUs of ``CUDA_VISIBLE_DEVICES`` in order, or all; none without a driver. Blocks for milliseconds."""
    try:
        with _nvml():
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            uuids = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
            return [_gpu(handles[index]) for index in visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))]
    except pynvml.NVMLError:
        return []


def visible(uuids: Sequence[str], setting: str | None) -> list[int]:
    """Return the indices of the GPUs selected by a value of ``CUDA_VISIBLE_DEVICES``.

    As in CUDA, an entry is an index or the beginning of a UUID, and an entry that matches no GPU, or more than one,
    ends the list.
    """
    if setting is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for name in (part.strip() for part in setting.split(",")):
        if name.isdecimal():
            fitting = [int(name)] if int(name) < len(uuids) else []
        else:
            fitting = [index for index, uuid in enumerate(uuids) if name and uuid.startswith(name)]
        if len(fitting) != 1 or fitting[0] in found:
            break
        found += fitting
    return found


@contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: Any) -> Gpu:
    rates = _known(pynvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _known(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return Gpu(
        str(pynvml.nvmlDeviceGetName(handle)),
        None if rates is None else rates.gpu / 100,
        None if memory is None else memory.used / _MIB,
        None if memory is None else memory.total / _MIB,
    )


def _known(read: Callable[[Any], Any], handle: Any) -> Any:
    """Return a value of a GPU; None if this type of GPU does not report it."""
    try:
        return read(handle)
    except pynvml.NVMLError_NotSupported:
        return None
