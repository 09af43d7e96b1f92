"""The Celery application, and the messages that notify workers of jobs. Requires the extra ``[celery]``.

The job's row and its lease are the source of truth; a message only wakes a worker. Lost messages are sent again, and
for repeated messages there is nothing to claim.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from streaming_server.errors import StorageFull, StorageUnavailable
from streaming_server.jobs.store import Job
from streaming_server.jobs.worker_registry import WorkerRegistry

log = logging.getLogger(__name__)
RETRY_S = 2
"""Pause before a retry."""
_LOOK_S = 1.0
_CONNECT_S = 2
_COMMAND_S = 5
"""Maximum time for the answer of Redis to a command; a worker's own wait for messages is shorter."""
_MAX_WAITING = 1000
"""Maximum number of messages that wait for a slow broker; `resend` sends the others."""
_VISIBILITY_S = 20
"""After this time Redis delivers an unacknowledged message again. A job's row prevents a second start, so this only
bounds the delay of another program's chain after the worker of one of its tasks was killed."""


def create_celery(url: str) -> Celery:
    """Create the Celery application of the server and its workers; ``url`` is the broker.

    Raises:
        StorageUnavailable: it is not the URL of a broker.
    """
    scheme, separator, _ = url.partition("://")
    # Celery takes a word without a scheme for a host of RabbitMQ. A transport may be a part: redis+socket:///path.
    if not separator or scheme.lower().partition("+")[0] not in TRANSPORT_ALIASES:
        raise StorageUnavailable("CELERY_BROKER_URL is not a broker URL such as redis://host/0 or amqp://host")
    is_redis = url.startswith("redis")
    # A single attempt, because a client waits for it; `resend` makes further ones.
    transport: dict[str, Any] = {"max_retries": 0, "interval_start": 0}
    if is_redis:
        # Separate keys: other programs on the same database keep their visibility timeout.
        own = {name: f"streaming_server.{name}" for name in ("unacked_key", "unacked_index_key", "unacked_mutex_key")}
        often = {"unacked_restore_interval": RETRY_S, "unacked_restore_throttle": 1}  # else every 100 s
        timeouts = {"socket_connect_timeout": _CONNECT_S, "socket_timeout": _COMMAND_S}
        transport |= {"visibility_timeout": _VISIBILITY_S, **timeouts, **often, **own}
    celery = Celery("streaming_server", broker=url, backend=url if is_redis else "rpc://")
    celery.conf.update(
        # Acknowledged at the end, one at a time, so that a busy worker holds no message that an idle one could take.
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_timeout=_CONNECT_S,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=transport,
        worker_hijack_root_logger=False,
        task_serializer="json",
        accept_content=["json"],
    )
    return celery


class Sender:
    """Sends messages about jobs to the workers."""

    def __init__(self, url: str) -> None:
        self.celery = create_celery(url)
        self._waiting: asyncio.Queue[Job] = asyncio.Queue(_MAX_WAITING)

    def announce(self, job: Job) -> None:
        """Let `send` send a message about a job. If the broker is away, `resend` sends it later."""
        with suppress(asyncio.QueueFull):
            self._waiting.put_nowait(job)

    async def send(self) -> None:
        """Send messages about the announced jobs, one after another, until cancelled."""
        while True:
            job = await self._waiting.get()
            await asyncio.to_thread(self._send, job.id, job.name, job.workflow_id)

    async def resend(self, registry: WorkerRegistry) -> None:
        """Send lost messages again, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                for job_id, name, workflow_id in await asyncio.to_thread(registry.take_unsent):
                    await asyncio.to_thread(self._send, job_id, name, workflow_id)
            except (StorageFull, StorageUnavailable) as error:
                log.warning("resend failed: %s", error)
            except Exception:
                log.exception("resend failed")

    def _send(self, job_id: str, name: str, workflow_id: str | None) -> None:
        message = {"workflow_id": workflow_id, "task_id": job_id}
        try:
            self.celery.send_task(name, args=[message], task_id=job_id, retry=False, ignore_result=True)
        except Exception as error:  # transports raise various exceptions if the broker is unavailable
            log.warning("send failed: id=%s reason=%r", job_id, str(error))
