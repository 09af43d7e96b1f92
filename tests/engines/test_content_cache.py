"""Analyses of recordings, kept by content."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from streaming_server.engines import content_cache
from streaming_server.engines.content_cache import ContentCache, FileDigests, LruCache
from streaming_server.errors import VoiceFileMissing


def test_what_was_used_least_recently_goes_first() -> None:
    cache = LruCache[str, int](2)
    computed: list[str] = []

    def compute(key: str) -> int:
        computed.append(key)
        return len(computed)

    for key in ("a", "b", "a", "c", "a", "b"):
        cache.get(key, partial(compute, key))
    assert computed == ["a", "b", "c", "b"]


def test_what_cannot_be_computed_is_tried_again() -> None:
    cache = LruCache[str, int](2)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    assert cache.get("a", lambda: 7) == 7


def test_a_file_is_hashed_once_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    digest = content_cache.digest

    def counted(path: Path) -> bytes:
        hashed.append(path)
        return digest(path)

    monkeypatch.setattr(content_cache, "digest", counted)
    digests, path = FileDigests(), tmp_path / "a.wav"
    path.write_bytes(b"one")
    first = digests.of(path)
    assert digests.of(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert digests.of(path) != first
    assert hashed == [path, path]
    with pytest.raises(VoiceFileMissing, match=r"gone\.wav"):
        digests.of(tmp_path / "gone.wav")


def test_two_files_of_one_content_are_analysed_once(tmp_path: Path) -> None:
    cache = ContentCache[str](4, FileDigests())
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"same")
        assert cache.peek(tmp_path / name) is None
        assert cache.get(tmp_path / name, lambda path: path.name) == "a"
        assert cache.peek(tmp_path / name) == "a"
