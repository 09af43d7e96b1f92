"""A server whose engine does what its text says: ``python -m tests.support.scripted_server``.

The settings come from the environment, as those of ``streaming-server serve`` do.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from streaming_server import logs
from streaming_server.domain import SpeechRequest
from streaming_server.server import create_server
from streaming_server.settings import Settings
from tests.support.fakes import FakeEngine, Step, tone


def kills(gate: Path) -> str:
    """A text at which the process is killed, once the file ``gate`` exists."""
    return f"kill {gate}"


def script(request: SpeechRequest) -> list[Step]:
    word, _, gate = request.text.partition(" ")

    async def wait_and_die() -> None:
        while not os.access(gate, os.F_OK):
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    return [wait_and_die] if word == "kill" else [tone(0.2)]


if __name__ == "__main__":
    logs.configure()
    create_server(Settings.from_env(os.environ), engine=FakeEngine(script)).run()
