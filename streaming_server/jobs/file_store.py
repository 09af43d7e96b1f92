"""Finished files by key: uploads, audio and the files of workflows. A file appears complete or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from streaming_server.errors import FileMissing, FileOutside, StorageFull, StorageUnavailable

_PATH_ERRORS = {errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
"""Error numbers of invalid paths, as opposed to unavailable storage."""


class Files(Protocol):
    """Files shared by several processes. Every method blocks and may raise `StorageUnavailable`."""

    def check(self, key: str) -> None:
        """
        Raises:
            FileOutside: the key resolves outside the folder, to a folder, or below a file.
        """

    def staged(self, key: str, source: Path) -> AbstractContextManager[Callable[[], None]]:
        """Bring the content of a local file to the store; what was not put into place is removed on leaving.

        A second attempt with a file of the same name replaces what a dead process has left of the first.

        Yields:
            A function that puts it under its key, replacing what is there. It is quick whatever the size, so that a
            transaction can include it.

        Raises:
            FileOutside: as `check`.
            StorageFull: there is no space left.
        """

    def local(self, key: str) -> Path:
        """Return a local path of the file.

        Raises:
            FileMissing: it does not exist.
        """

    def touch(self, path: Path) -> None:
        """Keep a local copy from being removed by `tidy`; ``path`` is one that `local` has returned."""

    def delete(self, key: str) -> None:
        """Remove a file if it exists."""

    def older_than(self, prefix: str, age_s: float) -> list[str]:
        """Return the keys of files directly below a prefix that were written at least ``age_s`` ago."""

    def tidy(self) -> None:
        """Remove local copies that have not been used for a while, and staged content of dead processes.

        Raises:
            StorageUnavailable: it has to be tried again.
        """


class FolderFiles:
    """Files in folders of this machine; the first part of a key names the folder."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """``folders``: the folders by the first part of a key."""
        self._folders = folders

    def check(self, key: str) -> None:
        path, root = self._path(key), self._folders[PurePosixPath(key).parts[0]]
        with storage_errors():
            if any(folder.exists() and not folder.is_dir() for folder in (root, *root.parents)):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            try:
                is_inside = path.resolve().is_relative_to(root.resolve()) and not path.is_dir()
                is_inside &= not any(parent.exists() and not parent.is_dir() for parent in path.parents)
            except RuntimeError:  # a loop of links
                is_inside = False
            except OSError as error:
                if error.errno not in _PATH_ERRORS:
                    raise
                is_inside = False
        if not is_inside:
            raise FileOutside

    @contextmanager
    def staged(self, key: str, source: Path) -> Iterator[Callable[[], None]]:
        target = self._path(key)
        self.check(key)
        staged = source
        with storage_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.stat().st_dev == target.parent.stat().st_dev:
                with source.open("rb") as file:
                    os.fsync(file.fileno())
            else:
                staged = _copied(source, target.with_name(f".{target.name}.{source.name}.part"))
            own = staged.stat()

        def put() -> None:
            with storage_errors():
                staged.replace(target)
                _sync(target.parent)  # the name survives a power failure before the client is answered

        try:
            yield put
        finally:
            # Another process that has taken the job over may have replaced the copy with its own.
            with suppress(OSError):
                if os.path.samestat(staged.stat(), own):
                    staged.unlink()

    def local(self, key: str) -> Path:
        self.check(key)
        path = self._path(key)
        with storage_errors():
            if not path.is_file():
                raise FileMissing(PurePosixPath(key).name)
        return path

    def touch(self, path: Path) -> None:
        """Does nothing: there are no copies."""

    def delete(self, key: str) -> None:
        with storage_errors():
            self._path(key).unlink(missing_ok=True)

    def older_than(self, prefix: str, age_s: float) -> list[str]:
        latest_s = time.time() - age_s
        with storage_errors():
            try:
                found = [entry for entry in os.scandir(self._folders[prefix]) if entry.is_file(follow_symlinks=False)]
            except FileNotFoundError:
                return []
            return [f"{prefix}/{entry.name}" for entry in found if entry.stat().st_mtime < latest_s]

    def tidy(self) -> None:
        """Does nothing: there are no copies."""

    def _path(self, key: str) -> Path:
        first, *rest = PurePosixPath(key).parts
        return self._folders[first].joinpath(*rest)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Translate operating system errors.

    Raises:
        StorageFull: there is no space left.
        StorageUnavailable: any other error, such as a read-only file system or missing permissions.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull from error
        reason = error.strerror or type(error).__name__
        raise StorageUnavailable(f"the server's storage cannot be used: {reason}; try again later") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copied(source: Path, target: Path) -> Path:
    """Copy a file to another file system."""
    target.unlink(missing_ok=True)  # left by a process that died
    with source.open("rb") as original, target.open("xb") as copy:
        try:
            shutil.copyfileobj(original, copy)
            copy.flush()
            os.fsync(copy.fileno())
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return target
