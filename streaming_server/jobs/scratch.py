"""A folder of one's own for files that are not whole yet, and what dead processes have left in theirs.

A folder belongs to whoever holds the lock on it. The system gives a lock back when its process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Scratch:
    """One process's share of a folder that several may use."""

    def __init__(self, folder: Path) -> None:
        """Take a new share of ``folder``, which is made where it is missing.

        Raises:
            OSError: it can't be written.
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.owner = f"worker@{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
        """A name that no other share has, on any machine, now or later; its process goes by it."""
        self.path = folder / self.owner
        with _locked(folder / ".lock"):
            self.path.mkdir()
            self._lock = (self.path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def new(self) -> Path:
        """A path for a new file; ``os.replace`` moves the file to where it belongs once it is whole."""
        return self.path / secrets.token_hex(8)

    def dead(self) -> list[str]:
        """The owners whose processes are gone. They are listed until `sweep` removes what they left."""
        with _locked(self._folder / ".lock"):
            return [path.name for path in sorted(self._folder.iterdir()) if path.is_dir() and not _is_held(path)]

    def sweep(self, owner: str) -> None:
        """Remove what a dead owner left."""
        with _locked(self._folder / ".lock"):
            shutil.rmtree(self._folder / owner, ignore_errors=True)

    def close(self) -> None:
        """Remove the share and all in it."""
        self.sweep(self.owner)
        self._lock.close()


def _is_held(path: Path) -> bool:
    try:
        with (path / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # held, or another user's: not ours to remove
        return True
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
