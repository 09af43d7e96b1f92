"""The GPUs of this machine, as nvidia-smi tells of them. Knows no model and no other kind of device."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

_FIELDS = "name,utilization.gpu,memory.used,memory.total"
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    utilization: float | None
    """0.0-1.0."""
    memory_used_mib: float | None
    memory_total_mib: float | None


def gpus() -> list[Gpu]:
    """What is there now; empty where there is no NVIDIA driver. Blocks its thread for some milliseconds."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    command = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        table = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [_gpu(line) for line in table.splitlines() if line.strip()]


def _gpu(line: str) -> Gpu:
    name, utilization, used, total = (part.strip() for part in line.rsplit(",", 3))
    percent = _number(utilization)
    return Gpu(name, None if percent is None else percent / 100, _number(used), _number(total))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None
