"""A server whose engine does what the text says: ``python -m tests.support.scripted_server``.

The settings come from the environment, as those of ``streaming-server serve`` do.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from pathlib import Path

import anyio

from streaming_server import logs
from streaming_server.domain import SpeechRequest
from streaming_server.server import create_server
from streaming_server.settings import Settings
from tests.support.fakes import FakeEngine, Step, tone

SCRIPTED = (sys.executable, "-m", "tests.support.scripted_server")


def until(path: Path) -> str:
    """A text that the engine begins, and ends when a file exists."""
    return f"until {path} {uuid.uuid4()}"


def killed_at(path: Path) -> str:
    """A text at which the process dies once a file exists."""
    return f"killed {path}"


def script(request: SpeechRequest) -> list[Step]:
    command, *arguments = request.text.split()
    if command not in {"until", "killed"}:
        return [tone(0.1)]

    async def exists() -> None:
        while not await anyio.Path(arguments[0]).exists():
            await anyio.sleep(0.01)

    async def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if command == "killed":
        return [exists, die]
    return [tone(0.1), exists, tone(0.1)]


if __name__ == "__main__":
    logs.configure()
    create_server(Settings.from_env(os.environ), engine=FakeEngine(script)).run()
