"""A cache of analysed recordings by file content, for all engines that analyse recordings.

A file is hashed once per version, which can happen before the slot is entered. Copies of a file share an analysis.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

from streaming_server.errors import VoiceFileMissing

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Version = tuple[Path, int, int, int]
"""Path, inode, size and modification time in nanoseconds of a file."""


class LruCache(Generic[K, T]):
    """Caches the ``capacity`` most recently used values. Thread-safe; two threads may compute the same value."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, T] = OrderedDict()

    def peek(self, key: K) -> T | None:
        """Return the value of a key if it is cached."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def shrink(self) -> None:
        """Remove all values and halve the capacity."""
        with self._lock:
            self._kept.clear()
            self._capacity = max(1, self._capacity // 2)

    def get(self, key: K, compute: Callable[[], T]) -> T:
        """Return the value of a key, computed if it is not cached; exceptions are not cached."""
        if (value := self.peek(key)) is not None:
            return value
        value = compute()
        with self._lock:
            self._kept[key] = value
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return value


class FileDigests:
    """SHA-256 digests of files, computed once per file version: its path, inode, size and time of modification."""

    CAPACITY = 4096

    def __init__(self) -> None:
        self._kept = LruCache[Version, bytes](self.CAPACITY)

    def of(self, path: Path) -> bytes:
        """
        Raises:
            VoiceFileMissing: the file cannot be read.
        """
        try:
            return self._kept.get(version(path), lambda: digest(path))
        except OSError as error:
            raise VoiceFileMissing(path.name) from error

    def peek(self, path: Path) -> bytes | None:
        """Return the digest of a file if its current version has been hashed.

        Raises:
            VoiceFileMissing: the file does not exist.
        """
        try:
            return self._kept.peek(version(path))
        except OSError as error:
            raise VoiceFileMissing(path.name) from error


def version(path: Path) -> Version:
    stat = path.stat()
    return path, stat.st_ino, stat.st_size, stat.st_mtime_ns


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class ContentCache(Generic[T]):
    """Caches the analyses of the ``capacity`` most recently used recordings.

    Args:
        capacity: Maximum number of analyses.
        digests: The file digests, shared by the caches of an engine.
    """

    def __init__(self, capacity: int, digests: FileDigests) -> None:
        self._digests = digests
        self._kept = LruCache[bytes, T](capacity)

    def peek(self, path: Path) -> T | None:
        """Return the analysis of a recording if it is cached, without reading the file.

        Raises:
            VoiceFileMissing: the file does not exist.
        """
        content = self._digests.peek(path)
        return None if content is None else self._kept.peek(content)

    def shrink(self) -> None:
        """Remove all analyses and halve the capacity."""
        self._kept.shrink()

    def get(self, path: Path, analyse: Callable[[Path], T]) -> T:
        """Return the analysis of a recording, computed if its content is new.

        Raises:
            VoiceFileMissing: the file does not exist.
            VoiceUnreadable: ``analyse`` cannot decode or analyse it.
        """
        return self._kept.get(self._digests.of(path), lambda: analyse(path))
