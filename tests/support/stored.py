"""Files in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streaming_server.jobs.file_store import Files


def put(files: Files, key: str, source: Path) -> None:
    """Move a local file to its key."""
    with files.staged(key, source) as place:
        place()


def watch_puts(
    monkeypatch: pytest.MonkeyPatch,
    files: Files,
    *,
    before: Callable[[str], None] = lambda _: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Call functions around every file's move to its key; ``before`` is given the key."""
    staged = files.staged

    @contextmanager
    def watched(key: str, source: Path) -> Iterator[Callable[[], None]]:
        with staged(key, source) as place:

            def put() -> None:
                before(key)
                place()
                after()

            yield put

    monkeypatch.setattr(files, "staged", watched)
