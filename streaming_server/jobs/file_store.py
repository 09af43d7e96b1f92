"""Where finished files lie, by key: uploads, audio, and whatever else processes share.

A file is there whole or not at all. Knows no database and not what a file holds.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from streaming_server.errors import FileMissing, FileOutside, StorageFull


class Files(Protocol):
    """What several processes share of files. Every method blocks its thread."""

    def check(self, key: str) -> None:
        """
        Raises:
            FileOutside: the key leads elsewhere, by a link, to a folder, or below what is none.
        """

    def put(self, key: str, source: Path) -> None:
        """Move a file of this machine to its key, over what is there.

        Raises:
            FileOutside: as `check`.
            StorageFull: there is no space.
        """

    def local(self, key: str) -> Path:
        """A path on this machine to read the file at.

        Raises:
            FileMissing: there is none.
        """

    def delete(self, key: str) -> None:
        """Remove a file, if it is there."""

    def older_than(self, prefix: str, age_s: float) -> list[str]:
        """The keys of files directly below a prefix that were written so many seconds ago."""

    def tidy(self) -> None:
        """Remove what this machine keeps of them and has not needed for a while."""


class FolderFiles:
    """Files in folders, each of which holds the keys that begin with its name."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """``folders``: by the first part of a key, where its files lie."""
        self._folders = folders

    def check(self, key: str) -> None:
        path, root = self._path(key), self._folders[PurePosixPath(key).parts[0]]
        try:
            is_inside = path.resolve().is_relative_to(root.resolve()) and not path.is_dir()
        except (OSError, RuntimeError):  # links in a circle
            is_inside = False
        if not is_inside:
            raise FileOutside
        if any(parent.exists() and not parent.is_dir() for parent in path.parents):
            raise FileOutside

    def put(self, key: str, source: Path) -> None:
        target = self._path(key)
        with full_disk():
            self.check(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as file:
                os.fsync(file.fileno())
            try:
                source.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy_whole(source, target)
            _sync(target.parent)  # the name outlives a power cut too, before anybody is told of it

    def local(self, key: str) -> Path:
        self.check(key)
        path = self._path(key)
        if not path.is_file():
            raise FileMissing(PurePosixPath(key).name)
        return path

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def older_than(self, prefix: str, age_s: float) -> list[str]:
        latest_s = time.time() - age_s
        try:
            found = [entry for entry in os.scandir(self._folders[prefix]) if entry.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return [f"{prefix}/{entry.name}" for entry in found if entry.stat().st_mtime < latest_s]

    def tidy(self) -> None:
        """There is nothing: the files are this machine's own."""

    def _path(self, key: str) -> Path:
        first, *rest = PurePosixPath(key).parts
        return self._folders[first].joinpath(*rest)


@contextmanager
def full_disk() -> Iterator[None]:
    """Raise `StorageFull` where the system says that there is no space."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull from error
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_whole(source: Path, target: Path) -> None:
    """Move a file to another file system, where it takes its name once it is whole."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        with source.open("rb") as whole, partial.open("xb") as copy:
            shutil.copyfileobj(whole, copy)
            copy.flush()
            os.fsync(copy.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    source.unlink()
