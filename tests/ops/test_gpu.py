from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from streaming_server.ops.gpu import Gpu, gpus, visible

UUIDS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        (" 2 , 1 ", [2, 1]),
        ("0,7,1", [0]),
        ("-1", []),
        ("0,0", [0]),
        ("GPU-aabb-2", [1]),
        ("GPU-cccc,GPU-aaaa-1", [2, 0]),
        ("GPU-aa", []),
        ("GPU-dddd", []),
        ("NoDevFiles", []),
        ("1,GPU-cccc", [1, 2]),
    ],
)
def test_the_visible_gpus_are_those_that_cuda_would_show(setting: str | None, indices: list[int]) -> None:
    assert visible(UUIDS, setting) == indices


class Driver:
    """A machine with three GPUs, of which the last reports nothing but its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = 0
        for name in ("Init", "Shutdown", "DeviceGetCount", "DeviceGetHandleByIndex", "DeviceGetUUID", "DeviceGetName"):
            monkeypatch.setattr(pynvml, f"nvml{name}", getattr(self, name))
        for name in ("DeviceGetUtilizationRates", "DeviceGetMemoryInfo"):
            monkeypatch.setattr(pynvml, f"nvml{name}", getattr(self, name))

    def Init(self) -> None:  # noqa: N802 - here and below NVML's names
        self.open += 1

    def Shutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def DeviceGetCount(self) -> int:  # noqa: N802
        return len(UUIDS)

    def DeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def DeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return UUIDS[handle]

    def DeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"GPU {handle}"

    def DeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        if handle == 2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=25 * (handle + 1))

    def DeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        if handle == 2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(used=2**30, total=2**31)


def test_a_worker_reports_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-cccc-3,1")
    assert gpus() == [Gpu("GPU 2", None, None, None), Gpu("GPU 1", 0.5, 1024, 2048)]
    assert driver.open == 0


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert gpus() == []
