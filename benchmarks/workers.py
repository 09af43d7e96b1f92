"""Scaling of workers: tasks per second with 1, 2 and 4 workers over a real Redis.

The engine takes a fixed time per task and computes nothing, so the overhead between two tasks is measured.

Usage: python -m benchmarks.workers [--seconds S] [--tasks N]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import percentile, table
from tests.support.brokers import Redis
from tests.support.fleet import Fleet, fleet
from tests.support.scripted import takes
from tests.support.server import eventually

COUNTS = (1, 2, 4)


def rate(many: Fleet, workers: int, tasks: int, seconds: float) -> tuple[float, float]:
    """Return the tasks per second from the first start to the last end, and the median seconds per task."""
    many.start(workers - len(many.workers))
    before = len(many.rows("id"))
    for index in range(tasks):
        many.submit(takes(seconds), f"{workers}/{index}.wav")
    eventually(lambda: all(state == "completed" for (state,) in many.rows("state")), within_s=10 * tasks * seconds)
    times = many.rows("started_s, ended_s")[before:]
    length_s = max(ended for _, ended in times) - min(started for started, _ in times)
    return tasks / length_s, percentile([ended - started for started, ended in times], 50)


def main(seconds: float, tasks: int) -> None:
    with TemporaryDirectory() as folder:
        redis = Redis(Path(folder))
        try:
            with fleet(redis) as many:
                found = {count: rate(many, count, tasks * count, seconds) for count in COUNTS}
        finally:
            redis.stop()
    one = found[1][0]
    rows = [
        [str(count), f"{found[count][0]:.2f}", f"{found[count][1]:.3f}", f"{found[count][0] / (count * one):.3f}"]
        for count in COUNTS
    ]
    table(["workers", "tasks/s", "s in hand", "share of linear"], rows)
    print(f"\none worker / the engine alone: {one * seconds:.3f}; four workers / linear: {found[4][0] / (4 * one):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds per task (1)")
    parser.add_argument("--tasks", type=int, default=15, help="tasks per worker (15)")
    options = parser.parse_args()
    main(options.seconds, options.tasks)
