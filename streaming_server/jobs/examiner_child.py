"""The child process that examines recordings of clients: one forked worker per recording, each from the same state.

The process that the server starts loads the decoders and then only forks, so it never reads what a client sent. Its
standard input is a socket, on which it sends a byte when it is ready. Each message to it is a byte with two
descriptors: the recording, and a socket on which a worker receives the `Task` and sends the `Answer`, both as JSON up
to the end of the stream. A worker that dies sends nothing. The process ends when the socket is closed.
"""

from __future__ import annotations

import gc
import io
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn, TypedDict

import av.subtitles.codeccontext  # noqa: F401 - PyAV imports it when it opens such a track

from streaming_server.audio.probe import probe
from streaming_server.errors import RecordingRefused
from streaming_server.sandbox import confine_process, confine_worker

_MEMORY_BYTES = 32 << 20
_MEMORY_PER_BYTE = 4
"""Of the file. A cover picture takes twice its size, and the index of short frames two and a half times their size."""
_ADDRESS_SPACE_BYTES = 16 << 30
"""Far above what a file may use, because FFmpeg continues without an index that it cannot allocate: such a file would
pass here, and take all its memory where it is opened without a limit."""
_WATCH_S = 0.005
_CPU_S = 30
_CPU_PER_S = 0.1
"""Of the longest recording that is allowed. All formats decode more than a hundred times faster than real time."""


class Task(TypedDict):
    longest_s: float
    formats: Sequence[str]


class Answer(TypedDict, total=False):
    recording: dict[str, Any]
    """The fields of a `Recording`."""
    refused: str
    """Why it is not accepted."""
    unavailable: str
    """Why no worker was started."""


def received(connection: socket.socket) -> bytes:
    """All bytes up to the end of the stream."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def serve(control: socket.socket) -> None:
    """Fork a worker for each message, until ``control`` ends."""
    parent = os.getpid()
    while (message := socket.recv_fds(control, 1, 2))[0]:
        recording, answers = message[1]
        try:
            if not os.fork():
                control.close()
                _work(recording, answers, parent)
        except OSError as error:
            unavailable: Answer = {"unavailable": error.strerror or type(error).__name__}
            os.write(answers, json.dumps(unavailable).encode())
        os.close(recording)
        os.close(answers)


def _work(recording: int, answers: int, parent: int) -> NoReturn:
    try:
        with open(recording, "rb") as file, socket.socket(fileno=answers) as connection:
            task: Task = json.loads(received(connection))
            limit = _peak_bytes() + _MEMORY_BYTES + _MEMORY_PER_BYTE * os.fstat(recording).st_size
            cpu_s = _CPU_S + int(_CPU_PER_S * task["longest_s"])
            try:
                threading.Thread(target=_watch, args=(limit,), daemon=True).start()
            except RuntimeError as error:  # a limit on processes or memory
                answer: Answer = {"unavailable": str(error)}
            else:
                confine_worker(parent, memory_bytes=_ADDRESS_SPACE_BYTES, cpu_s=cpu_s)
                answer = _examined(file, task)
            if _peak_bytes() <= limit:
                connection.sendall(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _examined(file: io.BufferedReader, task: Task) -> Answer:
    try:
        return {"recording": asdict(probe(file, task["longest_s"], task["formats"]))}
    except RecordingRefused as error:
        return {"refused": str(error)}


def _watch(limit: int) -> None:
    """End this process when it has used more memory than the limit."""
    while _peak_bytes() <= limit:
        time.sleep(_WATCH_S)
    os._exit(1)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _warm() -> None:
    """Load what every recording needs."""
    samples = bytes(4000)
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, 8000, 32000, 4, 32)
    body = head + b"data" + struct.pack("<I", len(samples)) + samples
    probe(io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body), 1.0)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects the workers
    gc.disable()  # a collection writes to the pages that the workers share
    control = socket.socket(fileno=os.dup(0))
    _warm()
    confine_process()
    # Standard output is the null device. Workers close `control`, so that its end shows that this process died.
    os.dup2(1, 0)
    os.dup2(1, 2)
    control.send(b"1")
    serve(control)


if __name__ == "__main__":
    main()
