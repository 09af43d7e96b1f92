"""The warning about a GPU that torch does not use, with the reason."""

from __future__ import annotations

from typing import Any

import pynvml
import pytest
import torch

from streaming_server.engines.torch.model_engine import allow_tf32, choose_device
from streaming_server.errors import EngineUnavailable


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One GPU, whose driver supports CUDA 12.4, and a torch that finds none."""
    answers: dict[str, Any] = {
        "nvmlInit": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": object(),
        "nvmlDeviceGetName": "H100",
        "nvmlSystemGetDriverVersion": "550.54",
        "nvmlSystemGetCudaDriverVersion": 12040,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("built_for", "visible", "reason"),
    [
        (None, None, "this torch is built without CUDA, and the driver shows H100"),
        ("13.0", None, "the driver 550.54 of H100 supports CUDA 12.4, and this torch needs 13.0; update the driver"),
        ("12.4", "", "CUDA_VISIBLE_DEVICES= hides H100"),
        ("12.1", None, "torch cannot initialise H100 (driver 550.54)"),
    ],
)
def test_the_reason_is_one_warning(
    driver: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    built_for: str | None,
    visible: str | None,
    reason: str,
) -> None:
    driver.setattr(torch.version, "cuda", built_for)
    if visible is not None:
        driver.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert choose_device("auto").type != "cuda"
    [record] = caplog.records
    assert record.getMessage().startswith(f"GPU not used: {reason}")


def test_the_reason_is_the_error_where_cuda_is_asked_for(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(EngineUnavailable) as raised:
        choose_device("cuda")
    assert str(raised.value).startswith("the device cuda is not available: the driver 550.54 of H100 supports CUDA 12")
    assert "--device auto" not in str(raised.value)
    driver.setattr(pynvml, "nvmlDeviceGetCount", lambda: 0)
    with pytest.raises(EngineUnavailable, match="cuda is not available: torch finds none; use --device auto"):
        choose_device("cuda")


def test_without_a_gpu_there_is_nothing_to_say(driver: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    driver.setattr(pynvml, "nvmlDeviceGetCount", lambda: 0)
    choose_device("auto")
    choose_device("cpu")
    assert not caplog.records


def test_float32_is_not_rounded() -> None:
    for allowed in (True, False):
        allow_tf32(allowed)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (allowed, allowed)
