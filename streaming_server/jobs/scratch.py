"""A folder for each process for unfinished files, and the folders that dead processes have left.

A folder belongs to the process that holds the lock on it. The system releases a lock when its process dies.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Scratch:
    """One process's folder below a folder that several processes share."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: the shared folder; it is made if it does not exist.

        Raises:
            OSError: it cannot be written.
        """
        self._folder = folder
        self.owner = f"worker@{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
        """A name that is unique over machines and time; the process is known by it."""
        self.path = folder / self.owner
        self._take()

    def new(self) -> Path:
        """A path for a new file; ``os.replace`` moves the file to its place once it is complete.

        Raises:
            OSError: the folder is gone and cannot be made again.
        """
        if not self.path.is_dir():
            self._lock.close()
            self._take()  # an outage of the storage took the folder with it
        return self.path / secrets.token_hex(8)

    def remove(self, path: Path) -> None:
        """Remove an unfinished file, if it exists and the storage allows it."""
        with suppress(OSError):
            path.unlink()

    def dead(self) -> list[str]:
        """The owners whose processes have died; each is listed until `sweep` has removed its folder."""
        with _locked(self._folder / ".lock"):
            return [path.name for path in sorted(self._folder.iterdir()) if path.is_dir() and not _is_held(path)]

    def sweep(self, owner: str) -> None:
        """Remove the folder of a dead owner."""
        with _locked(self._folder / ".lock"):
            shutil.rmtree(self._folder / owner, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder and all in it, if the storage allows it."""
        with suppress(OSError):
            self.sweep(self.owner)
        self._lock.close()

    def _take(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder / ".lock"):
            self.path.mkdir()
            self._lock = (self.path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: Path) -> bool:
    try:
        with (path / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # held, or owned by another user
        return True
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
