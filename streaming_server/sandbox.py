"""What a child process that runs a C library on input of clients gives up: memory, processes, files and the network.

A child process loads its library, confines itself, and then only forks workers. Resource limits hold everywhere, except
that macOS bounds no address space. On Linux the process also enters a network namespace of its own (user namespaces)
and can open nothing outside one folder (Landlock); a kernel or container that offers neither leaves the limits alone.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from pathlib import Path

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
# The same on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_EVERY_ACCESS = (1 << 13) - 1
"""What the first version of Landlock knows."""
_LANDLOCK_READ = 1 << 2 | 1 << 3
"""Files and folders."""
_LANDLOCK_PATH_BENEATH = 1

_LIBC = ctypes.CDLL(None)


def confine_process(readable: Path | None = None) -> None:
    """Bound this process and those that it forks; of the file system they can open ``readable`` alone, to read.

    They ignore SIGINT and SIGTERM, which a terminal and systemd send to all processes of a server: it ends them when it
    has finished its requests.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, 32)
    if sys.platform == "linux":
        _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _read_only(_LIBC, readable)


def confine_worker(parent: int, *, memory_bytes: int, cpu_s: int) -> None:
    """Bound one worker of the process ``parent``, and let it end with that process.

    Args:
        parent: the id of the process that forked it.
        memory_bytes: limit of its address space.
        cpu_s: processor time after which it is killed.
    """
    if sys.platform != "darwin":  # which rejects the limit
        _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_CPU, cpu_s)
    _limit(resource.RLIMIT_NPROC, 0)
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _read_only(libc: ctypes.CDLL, folder: Path | None) -> None:
    handled = struct.pack("=Q", _LANDLOCK_EVERY_ACCESS)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, handled, len(handled), 0)
    if ruleset < 0:
        return
    allowed = 0
    if folder is not None:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        rule = struct.pack("=Qi", _LANDLOCK_READ, opened)
        allowed = libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
        os.close(opened)
    if allowed == 0:
        libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
