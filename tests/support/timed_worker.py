"""A worker whose engine takes as long as its text says: ``python -m tests.support.timed_worker``.

The settings come from the environment, as those of ``streaming-server worker`` do.
"""

from __future__ import annotations

import os
import sys

from streaming_server import logs
from streaming_server.domain import SpeechRequest
from streaming_server.jobs import celery_client
from streaming_server.scale import celery_worker as celery
from streaming_server.settings import Settings
from tests.support.fakes import FakeEngine, Step, tone

_STEPS_A_SECOND = 20


def seconds_of(text: str) -> float:
    """What `takes` was given."""
    return float(text.split()[1])


def takes(seconds: float, note: str = "") -> str:
    """A text that the engine of this worker needs so long for."""
    return f"takes {seconds} s {note}"


def script(request: SpeechRequest) -> list[Step]:
    steps = max(1, round(seconds_of(request.text) * _STEPS_A_SECOND))
    return [step for _ in range(steps) for step in (1 / _STEPS_A_SECOND, tone(0.01))]


if __name__ == "__main__":
    if visibility_s := os.environ.get("TEST_VISIBILITY_S"):
        celery_client._VISIBILITY_S = int(visibility_s)
    sys.setswitchinterval(0.0005)
    logs.configure()
    celery.run_worker(Settings.from_env(os.environ), FakeEngine(script))
