"""The threads for blocking calls of the storage."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from streaming_server.errors import StorageUnavailable
from streaming_server.jobs import threads
from streaming_server.jobs.threads import LookupThreads


def test_lookups_that_timed_out_do_not_delay_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups, unlocked = LookupThreads(1), threading.Event()
    late: list[int] = []
    reads: list[Callable[[], object]] = [unlocked.wait, *[lambda: late.append(1)] * 3]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threads, "_LOOKUP_TIMEOUT_S", 0.01)
            for read in reads:
                with pytest.raises(StorageUnavailable, match="busy"):
                    lookups.run(read)
        monkeypatch.setattr(threads, "_LOOKUP_TIMEOUT_S", 180.0)
        unlocked.set()
        assert lookups.run(lambda: "found") == "found"
        assert late == []
    finally:
        unlocked.set()
        lookups.close()
