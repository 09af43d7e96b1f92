"""The server as a separate process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from tests.support.children import end, spawn
from tests.support.server import eventually

ROOT = Path(__file__).parents[2]
SERVE = (sys.executable, "-m", "streaming_server.cli", "serve")
_PATIENT = {"HEADER_TIMEOUT_S": "600", "BODY_TIMEOUT_S": "600"}
"""Long deadlines, so that a busy test machine does not count as a slow client."""


@dataclass
class ServerProcess:
    process: subprocess.Popen[str]
    port: int
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(180)


@contextmanager
def server_process(*command: str, **environment: str) -> Iterator[ServerProcess]:
    """Start a server on a free port, wait until it is healthy, and end it with the ``with``."""
    with TemporaryDirectory() as data_dir:
        yield from _started(command, {"DATA_DIR": data_dir} | environment)


def _started(command: tuple[str, ...], environment: dict[str, str]) -> Iterator[ServerProcess]:
    process = spawn(
        command or SERVE,
        cwd=ROOT,
        env=os.environ | _PATIENT | {"HOST": "127.0.0.1", "PORT": "0"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    log: list[str] = []
    reader = threading.Thread(target=log.extend, args=(process.stderr,))
    reader.start()
    try:
        found: list[str] = []

        def listening() -> bool:
            if process.poll() is not None:
                end(process)
                reader.join()
                raise AssertionError("".join(log))
            found[:] = re.findall(r"running on http://127\.0\.0\.1:(\d+)", "".join(list(log)))
            return bool(found)

        eventually(listening, within_s=120)
        server = ServerProcess(process, int(found[0]), log)
        with httpx.Client(base_url=server.url, timeout=120) as client:
            eventually(lambda: client.get("/health").status_code == 200)
        yield server
    finally:
        end(process)
        reader.join()
        process.stderr.close()
