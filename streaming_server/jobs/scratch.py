"""Folders for unfinished files, one per process, and the cleanup of those of dead processes.

A folder belongs to the process that holds its lock. The operating system releases the lock when the process dies.
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

from streaming_server.jobs.file_store import storage_errors


class Scratch:
    """The folder of this process, below a folder shared by several processes."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: the shared folder, created if necessary.

        Raises:
            OSError: it cannot be written.
        """
        self._folder = folder
        self.owner = f"worker@{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
        """The id of the process, unique over machines and time."""
        self.path = folder / self.owner
        self._take()

    def new(self, name: str = "") -> Path:
        """Return a path for a new file, which ``os.replace`` moves into place when it is complete.

        Args:
            name: the file's name; a random one if empty.

        Raises:
            StorageFull, StorageUnavailable: the folder does not exist and cannot be created.
        """
        with storage_errors():
            if not self.path.is_dir():
                self._lock.close()
                self._take()  # the folder was lost in a storage outage
        return self.path / (name or secrets.token_hex(8))

    def remove(self, path: Path) -> None:
        """Remove an unfinished file if possible."""
        with suppress(OSError):
            path.unlink()

    def dead(self) -> list[str]:
        """Return the owners whose processes have died, until `sweep` has removed their folders."""
        with _locked(self._folder / ".lock"):
            return [path.name for path in sorted(self._folder.iterdir()) if path.is_dir() and not _is_held(path)]

    def sweep(self, owner: str) -> None:
        """Remove the folder of a dead owner."""
        with _locked(self._folder / ".lock"):
            shutil.rmtree(self._folder / owner, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder with its content if possible."""
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
