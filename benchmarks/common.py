"""Shared by the benchmarks: a real server on loopback, a minimal client, and tables."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
TEXT = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. "
    "It has seen many foxes come and go. 今天天气很好，我们去公园散步。"
)
"""Eleven seconds of speech."""
SENTENCE = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."
"""Five seconds of speech."""


@dataclass(frozen=True)
class Server:
    port: int
    log: list[str]
    """What it has logged, one JSON object a line."""

    def logged(self, message: str) -> dict[str, object]:
        """The first record with a message; empty where none is logged within some seconds."""
        for _ in range(100):
            records = (json.loads(line) for line in list(self.log) if line.startswith("{"))
            if found := next((record for record in records if record["message"] == message), None):
                return dict(found)
            time.sleep(0.05)
        return {}


@contextmanager
def running_server(*command: str, **environment: str) -> Iterator[Server]:
    """Run ``streaming-server serve``, or another module's server, in its own process on a free port.

    Its data is in a temporary folder.

    Raises:
        RuntimeError: It ends, or its engine fails, before it is ready; the message has the end of its log.
    """
    given = command or ("streaming_server.cli", "serve", "--host", "127.0.0.1", "--port", "0")
    with TemporaryDirectory() as data_dir:
        process = subprocess.Popen(
            [sys.executable, "-m", *given],
            cwd=ROOT,
            env=os.environ | {"DATA_DIR": data_dir} | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        log: list[str] = []
        drain = threading.Thread(target=log.extend, args=(process.stderr,))  # a full pipe would block the server
        try:
            for line in process.stderr:
                log.append(line)
                if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                    port = int(found[1])
                    break
            else:
                raise RuntimeError(f"the server did not start: {''.join(log[-5:])}")
            drain.start()
            while (status := _health(port)) != "healthy":
                if status == "unhealthy" or process.poll() is not None:
                    _end(process, drain)
                    raise RuntimeError(f"the engine did not start: {''.join(log[-5:])}")
                time.sleep(0.02)
            yield Server(port, log)
        finally:
            _end(process, drain)
            process.stderr.close()


def _end(process: subprocess.Popen[str], drain: threading.Thread) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(180)
    if drain.ident is not None:
        drain.join(5)


def _health(port: int) -> str:
    """The status of a server's health; empty where it has none, or the server has ended."""
    try:
        return str(asyncio.run(get_json(port, "/health"))["status"])
    except (OSError, ValueError, KeyError):
        return ""


@asynccontextmanager
async def request(port: int, path: str, body: dict[str, object] | None = None) -> AsyncIterator[asyncio.StreamReader]:
    """Send one request on a new connection, which is closed at the end of the ``with``."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        content = json.dumps(body).encode() if body is not None else b""
        head = f"{'POST' if body is not None else 'GET'} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        writer.write(
            f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
        )
        yield reader
    finally:
        writer.close()


async def status_of(port: int, path: str) -> int:
    """Return the status of a GET."""
    async with request(port, path) as reader:
        answer = await reader.read()
    return int(answer.split(b" ", 2)[1])


async def get_json(port: int, path: str) -> dict[str, object]:
    """Return the JSON object of a GET."""
    async with request(port, path) as reader:
        answer = await reader.read()
    content: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return content


async def first_audio_ms(port: int, path: str, text: str = TEXT, *, to_the_end: bool = False) -> float:
    """Return the time from connecting to the first page of Opus audio, or the first PCM."""
    began_s = time.perf_counter()
    async with request(port, path, {"text": text}) as reader:
        received = b""
        while not _has_audio(received, path):
            piece = await reader.read(65536)
            if not piece:
                raise RuntimeError(f"no audio: {received[:300]!r}")
            received += piece
        elapsed_ms = (time.perf_counter() - began_s) * 1000
        while to_the_end and await reader.read(65536):
            pass
    return elapsed_ms


def _has_audio(received: bytes, path: str) -> bool:
    if path.endswith("opus"):
        return received.count(b"OggS") > 2  # after two header pages
    return len(received.partition(b"\r\n\r\n")[2]) > 8


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a table."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
