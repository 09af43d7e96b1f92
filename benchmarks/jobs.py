"""Times of the job store by the number of tasks in the table.

One client calls the store directly, without HTTP. One task in twenty is pending, the others have ended. The floor is
the time to sync one page to disk. PostgreSQL is measured if the URL of an empty database is given.

Usage: python -m benchmarks.jobs [--rounds N] [--postgresql URL]
"""

from __future__ import annotations

import argparse
import os
import time
import uuid
from collections.abc import Callable
from tempfile import TemporaryDirectory, TemporaryFile

import sqlalchemy as sa

from benchmarks.common import percentile, table
from streaming_server.jobs.database import Database, jobs
from streaming_server.jobs.inspection import SPEECH
from streaming_server.jobs.store import JobState, JobStore, NewJob

SIZES = (100, 10_000, 100_000)
BARS_MS = {"list 50": 20.0, "claim": 5.0}
"""For the 99th percentile, at 10 000."""
_PAYLOAD = "x" * 1000
_PENDING_SHARE = 20


def fill(database: Database, size: int) -> None:
    """Add tasks up to the given number."""
    with database.write() as connection:
        there = connection.execute(sa.select(sa.func.count()).select_from(jobs)).scalar_one()
        rows = [
            {
                "id": uuid.uuid4().hex,
                "name": SPEECH,
                "position": 0,
                "state": JobState.PENDING if number % _PENDING_SHARE == 0 else JobState.COMPLETED,
                "payload": _PAYLOAD,
                "preview": "",
                "message": "",
                "progress": 0.0,
                "attempts": 0,
                "failures": 0,
                "created_s": time.time(),
                "ended_s": None if number % _PENDING_SHARE == 0 else time.time(),
            }
            for number in range(there, size)
        ]
        if rows:
            connection.execute(jobs.insert(), rows)


def times_ms(work: Callable[[], object], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began_s) * 1000)
    return taken


def measured(store: JobStore, size: int, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each call; `submit` adds a task a round, which stays."""
    found = {
        "list 50": times_ms(lambda: store.page(50), rounds),
        "list 50, the last": times_ms(lambda: store.page(50, size - 50), rounds),
        "list 50 pending": times_ms(lambda: store.page(50, 0, [JobState.PENDING]), rounds),
        "counts": times_ms(store.counts, rounds),
        "submit": times_ms(lambda: store.submit([NewJob(uuid.uuid4().hex, SPEECH, _PAYLOAD)]), rounds),
    }
    claim_ms, finish_ms = [], []
    for _ in range(rounds):
        began_s = time.perf_counter()
        job = store.claim("benchmark")
        claim_ms.append((time.perf_counter() - began_s) * 1000)
        assert job is not None
        began_s = time.perf_counter()
        store.finish(job, "")
        finish_ms.append((time.perf_counter() - began_s) * 1000)
    return {**found, "claim": claim_ms, "finish": finish_ms}


def sync_ms(rounds: int) -> list[float]:
    """Return the milliseconds to sync four kilobytes to disk."""
    with TemporaryFile(buffering=0) as file:

        def keep() -> None:
            file.write(bytes(4096))
            os.fsync(file.fileno())

        return times_ms(keep, rounds)


def measure(kind: str, url: str, rounds: int) -> None:
    database = Database(url)
    store = JobStore(database, max_pending=1_000_000, lease_s=60)
    by_size = {}
    for size in SIZES:
        fill(database, size)
        by_size[size] = measured(store, size, rounds)
    database.close()
    rows = []
    for call in by_size[SIZES[0]]:
        medians, tails = ([percentile(by_size[size][call], percent) for size in SIZES] for percent in (50, 99))
        figures = [f"{value:.2f}" for pair in zip(medians, tails, strict=True) for value in pair]
        growth = [f"{tail / tails[0]:.1f}" for tail in tails[1:]]
        bar = f"p99 <= {BARS_MS[call]:g} ms" if call in BARS_MS else ""
        rows.append([call, *figures, *growth, bar])
    sizes = [f"{name} of {size}" for size in SIZES for name in ("p50", "p99")]
    table([f"{kind}, ms", *sizes, "p99, 10 000 : 100", "100 000 : 100", "bar at 10 000"], rows)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--postgresql", metavar="URL")
    options = parser.parse_args()
    floor = sync_ms(options.rounds)
    print(f"the disk alone, ms: p50 {percentile(floor, 50):.2f}, p99 {percentile(floor, 99):.2f}\n")
    with TemporaryDirectory() as folder:
        measure("SQLite", f"sqlite:///{folder}/jobs.db", options.rounds)
    if options.postgresql:
        measure("PostgreSQL", options.postgresql, options.rounds)


if __name__ == "__main__":
    main()
