"""A worker with the scripted engine: ``python -m tests.support.timed_worker``.

The settings come from the environment, as those of ``streaming-server worker`` do.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from streaming_server import logs
from streaming_server.api.workflows.messages import Messages
from streaming_server.components import create_worker
from streaming_server.jobs import celery_client, database
from streaming_server.scale import celery_worker as celery
from streaming_server.settings import Settings
from tests.support.fakes import FakeEngine
from tests.support.scripted import script

if __name__ == "__main__":
    database._LOCK_TIMEOUT_MS = 60_000  # a busy machine can take long to write
    if visibility_s := os.environ.get("TEST_VISIBILITY_S"):
        celery_client._VISIBILITY_S = int(visibility_s)
    sys.setswitchinterval(0.0005)
    logs.configure()
    settings = Settings.from_env(os.environ)
    celery.run_worker(
        settings,
        partial(Messages.for_worker, max_characters=settings.max_text_characters),
        partial(create_worker, engine=FakeEngine(script)),
    )
