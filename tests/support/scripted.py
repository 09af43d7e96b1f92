"""An engine that does what its text says, for servers and workers in processes of their own.

`SCRIPTED` is the environment in which ``streaming-server`` finds it, as the engine of another distribution.
"""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import anyio

from streaming_server.domain import SpeechRequest
from streaming_server.engines.base import EngineOptions, EngineSpec
from streaming_server.errors import DeviceFailed
from tests.support.fakes import FakeEngine, Step, tone

_STEPS_A_SECOND = 20
_model: list[list[str]] = []
_ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(_ROOT), str(_ROOT / "tests/support/plugins"), os.environ.get("PYTHONPATH", "")])
SCRIPTED = {"ENGINE": "scripted", "PYTHONPATH": PYTHONPATH}


def takes(seconds: float, note: str = "") -> str:
    """A text that the engine needs so long for."""
    return f"takes {seconds} s {note}"


def until(path: Path) -> str:
    """A text that the engine begins at once, and ends when a file exists."""
    return f"until {path}"


def killed_at(path: Path) -> str:
    """A text at which the process dies once a file exists."""
    return f"killed {path}"


def notes_collected(path: Path) -> str:
    """A text at which the engine writes into a file whether garbage collection looks at its model."""
    return f"collected {path}"


async def load() -> None:
    _model.append([])


BREAKS_THE_DEVICE = "device"
"""A text at which the engine's device fails, after some audio."""


def script(request: SpeechRequest) -> list[Step]:
    command, _, argument = request.text.partition(" ")
    if command == "takes":
        steps = max(1, round(float(argument.split()[0]) * _STEPS_A_SECOND))
        return [step for _ in range(steps) for step in (1 / _STEPS_A_SECOND, tone(0.01))]

    async def exists() -> None:
        while not await anyio.Path(argument).exists():
            await anyio.sleep(0.01)

    async def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def note() -> None:
        await anyio.Path(argument).write_text(str(any(found is _model[0] for found in gc.get_objects())))

    scripts: dict[str, list[Step]] = {
        "until": [tone(0.1), exists, tone(0.1)],
        "killed": [exists, die],
        "collected": [tone(0.1), note],
    }
    scripts[BREAKS_THE_DEVICE] = [tone(0.1), DeviceFailed()]
    return scripts.get(command, [tone(0.1)])


ENGINE = EngineSpec(
    name="scripted", title="does what its text says", options=EngineOptions, create=lambda _: FakeEngine(script, [load])
)
