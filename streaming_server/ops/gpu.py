"""The NVIDIA GPUs that this process may use, as the driver reports them (NVML)."""

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
    """The GPUs of ``CUDA_VISIBLE_DEVICES``, in its order, or all; none without a driver. Blocks for milliseconds."""
    try:
        with _nvml():
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            uuids = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
            return [_gpu(handles[index]) for index in visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))]
    except pynvml.NVMLError:
        return []


def visible(uuids: Sequence[str], setting: str | None) -> list[int]:
    """The indices that a value of ``CUDA_VISIBLE_DEVICES`` names among the GPUs of a machine.

    As in CUDA, a GPU is named by its index or by the beginning of its UUID, and a name that fits none, or more than
    one, ends the list.
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
    """A value of a GPU; None where this kind of GPU reports none."""
    try:
        return read(handle)
    except pynvml.NVMLError_NotSupported:
        return None
