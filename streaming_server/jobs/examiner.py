"""Examines recordings of clients in a child process, where a crafted file can neither crash nor fill the server."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from streaming_server.audio.probe import ALL_FORMATS, Recording
from streaming_server.errors import RecordingRefused, StorageUnavailable
from streaming_server.jobs.examiner_child import Answer, Task, received

log = logging.getLogger(__name__)

_COMMAND = ("-s", "-S", "-B", "-P", "-m", "streaming_server.jobs.examiner_child")
_PACKAGES = Path(__file__).parents[2]
_START_S = 60.0
_END_S = 5.0


class Examiner:
    """Decodes recordings, each in a process of its own with limits on memory and processor time.

    A recording that passes was opened and decoded within those limits. To decode the same bytes takes the same memory
    each time, so afterwards the server decodes them itself, for a voice.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._child: _Child | None = None

    def examine(self, path: Path, longest_s: float, formats: Sequence[str] = ALL_FORMATS) -> Recording:
        """Decode a file to its end, as `audio.probe.probe`. The first call starts the child process.

        Raises:
            RecordingRefused: it is not a recording of an allowed kind, or its worker crashed or reached a limit.
            StorageUnavailable: no process can be started.
            OSError: the file cannot be read.
        """
        task: Task = {"longest_s": longest_s, "formats": formats}
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, path.open("rb") as file:
                ours.sendall(json.dumps(task).encode())
                ours.shutdown(socket.SHUT_WR)
                self._send([file.fileno(), theirs.fileno()])
            try:
                content = received(ours)
            except ConnectionResetError:  # the worker died before it received the task
                content = b""
        if not content:
            log.warning("examination failed: worker died")
            raise RecordingRefused("the file cannot be decoded within the limits on memory and time")
        answer: Answer = json.loads(content)
        if "recording" in answer:
            return Recording(**answer["recording"])
        if "refused" in answer:
            raise RecordingRefused(answer["refused"])
        raise StorageUnavailable(f"the recording cannot be examined: {answer['unavailable']}; try again later")

    def close(self) -> None:
        """End the child process; no call may be running."""
        if self._child is not None:
            self._child.end()

    def _send(self, descriptors: Sequence[int]) -> None:
        with self._lock:
            if self._child is not None:
                try:
                    self._child.send(descriptors)
                    return
                except OSError:
                    log.warning("process that examines recordings died; another one is started")
                    self._child.end()
                    self._child = None
            self._child = _Child()
            self._child.send(descriptors)


def _environment() -> dict[str, str]:
    """What the child process needs to find its libraries, and nothing else that the server knows."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    # One thread, because the process forks; OpenBLAS starts one a core otherwise.
    path = os.pathsep.join([str(_PACKAGES), *filter(None, sys.path)])
    return kept | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


class _Child:
    """The process that forks the workers."""

    def __init__(self) -> None:
        """
        Raises:
            StorageUnavailable: it does not start.
        """
        self._control, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *_COMMAND],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env=_environment(),
                )
            except OSError as error:
                self._control.close()
                raise StorageUnavailable(f"no process can be started: {error.strerror}; try again later") from error
        self._control.settimeout(_START_S)
        try:
            is_ready = self._control.recv(1)
        except TimeoutError:
            is_ready = b""
        assert self._process.stderr is not None
        with self._process.stderr as stderr:  # the process closes its end when it is ready
            if not is_ready:
                self.end()
                said = stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
                log.error("process that examines recordings does not start: %s", said or "no answer")
                raise StorageUnavailable("the process that examines recordings does not start")

    def send(self, descriptors: Sequence[int]) -> None:
        """
        Raises:
            OSError: the process has died.
        """
        socket.send_fds(self._control, [b"1"], descriptors)

    def end(self) -> None:
        """The end of the socket ends the process, and with it the workers."""
        self._control.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
