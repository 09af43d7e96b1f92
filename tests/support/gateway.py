"""A real HAProxy with the project's own configuration, in front of servers on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from tests.support.children import end, spawn
from tests.support.server import eventually

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"


def _patient(configuration: Path, folder: Path) -> Path:
    """A copy with more time for a check, which servers that stall do not fail."""
    text, connecting = configuration.read_text(encoding="utf-8"), "timeout connect 2s\n"
    assert connecting in text
    path = folder / "haproxy.cfg"
    path.write_text(text.replace(connecting, f"{connecting}    timeout check 60s\n"), encoding="utf-8")
    return path


@dataclass
class Gateway:
    process: subprocess.Popen[bytes]
    port: int
    stats: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def figure(self, column: str, proxy: str = "speech", server: str = "BACKEND") -> str:
        """One cell of HAProxy's own table of figures."""
        head, *rows = self.stats.get("/;csv").text.lstrip("# ").splitlines()
        names = head.split(",")
        found = [row.split(",") for row in rows]
        return next(row[names.index(column)] for row in found if row[:2] == [proxy, server])

    def waiting(self) -> int:
        """How many requests wait for a server."""
        return int(self.figure("qcur"))

    def up(self, server: str) -> bool:
        return self.figure("status", server=server).startswith("UP")


@contextmanager
def gateway(
    first: int, second: int, agents: tuple[int, int], configuration: Path = CONFIGURATION, *, present: int = 2
) -> Iterator[Gateway]:
    """Listen on a free port, in front of the servers on these two, until the ``with`` ends.

    With ``present=1`` nothing listens on the second port.
    """
    with (
        TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as front,
        socket.create_server(("127.0.0.1", 0)) as stats,
    ):
        process = spawn(
            ["haproxy", "-f", _patient(configuration, Path(folder))],
            env=os.environ
            | {"BIND": f"fd@{front.fileno()}", "STATS": f"fd@{stats.fileno()}"}
            | {"SERVER_1": f"127.0.0.1:{first}", "SERVER_2": f"127.0.0.1:{second}"}
            | {"AGENT_1": str(agents[0]), "AGENT_2": str(agents[1])},
            pass_fds=[front.fileno(), stats.fileno()],
            stdout=subprocess.DEVNULL,
        )
        ports = front.getsockname()[1], stats.getsockname()[1]
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{ports[1]}", timeout=120) as client:
                running = Gateway(process, ports[0], client)
                checked = [f"gpu{number}" for number in range(1, present + 1)]
                eventually(lambda: {running.figure("check_status", server=name)[-4:] for name in checked} == {"L7OK"})
                yield running
        finally:
            end(process)
