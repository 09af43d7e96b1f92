"""Processes that tests start: each ends with its fixture, and none outlives the run."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_PORTS = range(20_000, 32_000)
"""Below the range from which the kernel takes ports for outgoing connections, and above Ray's workers."""
_claims: list[socket.socket] = []


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that `leftovers` finds it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def spawn(command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
    """Start a process in a new session, without input unless ``stdin`` is given; stop it with `end`."""
    return subprocess.Popen(command, **{"stdin": subprocess.DEVNULL, "start_new_session": True} | options)


def end(process: subprocess.Popen[Any], number: int = signal.SIGTERM, within_s: float = 60) -> int:
    """Send a signal to a process of `spawn`, wait, and kill what is left of its group and its descendants.

    Returns:
        The exit status.
    """
    descendants = []
    if process.poll() is None:
        descendants = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(within_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        with suppress(psutil.NoSuchProcess):
            descendant.kill()
    return process.wait()


def handles(process: subprocess.Popen[Any], number: int) -> bool:
    """Whether a process has installed a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def end_leftovers(within_s: float) -> list[str]:
    """Kill the descendants of this process that do not end by themselves.

    Returns:
        For each, its command and the test that started it.
    """
    _, left = psutil.wait_procs(_running(), timeout=within_s)
    described = [_described(process) for process in left]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=60)
    return described


def free_port() -> int:
    """Return a free loopback port that no other test process receives while this one runs."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0streaming-server-test-port-{port}")
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return port


def _running() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            # The resource tracker of `multiprocessing` ends with the process that uses it.
            tracks = "multiprocessing.resource_tracker" in " ".join(process.cmdline())
            if not tracks and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _described(process: psutil.Process) -> str:
    try:
        command, environment = " ".join(process.cmdline()), process.environ()
    except psutil.Error:
        return f"process {process.pid}"
    return f"process {process.pid}, started by {environment.get('PYTEST_CURRENT_TEST', 'an unknown test')}: {command}"
