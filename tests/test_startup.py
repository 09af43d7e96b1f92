from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from streaming_server import startup
from streaming_server.engines.base import EngineInfo
from streaming_server.ops.gpu import Gpu


@pytest.mark.parametrize(
    ("host", "player"),
    [
        ("0.0.0.0", "http://localhost:8000/player"),
        ("::1", "http://[::1]:8000/player"),
        ("a.b", "http://a.b:8000/player"),
    ],
)
def test_the_summary_has_what_runs(host: str, player: str) -> None:
    info = EngineInfo("indextts", "1.5.0", 24000, device="cuda:0", precision="fp16", model_dir="checkpoints")
    assert startup.summary(info, 11, host, 8000) == (
        "server ready: engine indextts, model checkpoints 1.5.0, device cuda:0, precision fp16, voices 11, "
        f"player {player}"
    )


@pytest.mark.parametrize(
    ("torch_sees_it", "warning"),
    [
        (None, "GPU not used: H200: the x engine runs on the CPU"),
        (True, "GPU not used: H200: DEVICE=cpu"),
        (False, ""),  # the engine has logged the reason
    ],
)
def test_a_gpu_that_is_not_used_is_named_with_the_reason(
    torch_sees_it: bool | None, warning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "gpus", lambda: [Gpu("H200", 0.0, 0.0, 1.0)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if torch_sees_it is not None:
        fake = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: torch_sees_it))
        monkeypatch.setitem(sys.modules, "torch", fake)
    assert startup.unused_gpu(EngineInfo("x", "1", 24000)) == warning
    assert startup.unused_gpu(EngineInfo("x", "1", 24000, device="cuda:0")) == ""


def test_without_a_gpu_there_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "gpus", list)
    assert startup.unused_gpu(EngineInfo("x", "1", 24000)) == ""


@pytest.mark.parametrize(
    ("host", "has_keys", "warns"),
    [("0.0.0.0", False, True), ("::", False, True), ("0.0.0.0", True, False), ("127.0.0.1", False, False)],
)
def test_a_server_without_keys_that_the_network_reaches_is_a_warning(host: str, has_keys: bool, warns: bool) -> None:
    warning = startup.open_access(host, has_keys)
    assert (f"no API_KEYS set and HOST={host}" in warning) == warns
    assert bool(warning) == warns
