"""Analyses of recordings, kept by the content of their files.

One `ContentCache` serves every engine that analyses recordings. A file is hashed once per version, on whichever thread
asks first, so that this can be done before the engine's slot is entered. An analysis belongs to the content: a copy of
a file needs no new one.
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
"""A file, its inode, its size and its time of modification in nanoseconds."""


class LruCache(Generic[K, T]):
    """The ``capacity`` values that were used last. Thread-safe; two threads may compute the same value."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, T] = OrderedDict()

    def peek(self, key: K) -> T | None:
        """The value of a key that is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def shrink(self) -> None:
        """Forget all values, and keep half as many from now on."""
        with self._lock:
            self._kept.clear()
            self._capacity = max(1, self._capacity // 2)

    def get(self, key: K, compute: Callable[[], T]) -> T:
        """The value of a key, computed where it is not kept; what ``compute`` raises is not kept."""
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
        """The digest of a file whose present version has been hashed.

        Raises:
            VoiceFileMissing: there is no such file.
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
    """Analyses of the ``capacity`` recordings that were used last.

    Args:
        capacity: Analyses that are kept.
        digests: Shared by the caches of one engine.
    """

    def __init__(self, capacity: int, digests: FileDigests) -> None:
        self._digests = digests
        self._kept = LruCache[bytes, T](capacity)

    def peek(self, path: Path) -> T | None:
        """The analysis of a recording where it is kept, without reading the file.

        Raises:
            VoiceFileMissing: there is no such file.
        """
        content = self._digests.peek(path)
        return None if content is None else self._kept.peek(content)

    def shrink(self) -> None:
        """Forget all analyses, and keep half as many from now on."""
        self._kept.shrink()

    def get(self, path: Path, analyse: Callable[[Path], T]) -> T:
        """The analysis of a recording, made where its content is new.

        Raises:
            VoiceFileMissing: there is no such file.
            VoiceUnreadable: ``analyse`` cannot decode or analyse it.
        """
        return self._kept.get(self._digests.of(path), lambda: analyse(path))
