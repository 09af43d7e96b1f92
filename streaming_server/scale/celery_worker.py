"""Celery: jobs are told to workers by name and id, and workers do them.

The truth is the row in SQL and its lease; a message only says that there is something to do. One that is lost is sent
once more, one that comes twice finds nothing to claim. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import Coroutine, Mapping
from typing import Any, TypeGuard, TypeVar

from celery import Celery
from celery.worker import state

from streaming_server.api.http import status_of, validated
from streaming_server.api.workflows.routes import SHAPE, Planner, error_body, failure_of, result_of
from streaming_server.api.workflows.schemas import WorkflowBody
from streaming_server.app import create_planner, create_worker
from streaming_server.engines.base import Engine
from streaming_server.errors import JobQueueFull, SpeechServerError, StorageFull, StorageUnavailable
from streaming_server.jobs.inspection import QUESTIONS, SPEECH
from streaming_server.jobs.runner import SpeechJob
from streaming_server.jobs.service import new_job
from streaming_server.jobs.store import UNFINISHED, Job, JobState, NewJob
from streaming_server.jobs.worker import Worker
from streaming_server.jobs.worker_registry import WorkerRegistry
from streaming_server.settings import Settings

log = logging.getLogger(__name__)
NAMES = (SPEECH, *QUESTIONS)
_LOOK_S = 1.0
_VISIBILITY_S = 20
"""After so long Redis hands out a message again that is still being worked at. A job's row lets nobody begin it twice,
so this only bounds how long another program's chain rests where the worker of one of its tasks was killed."""
_RETRY_S, _CONNECT_S = 2, 2
T = TypeVar("T")


class TaskFailed(Exception):
    """A task that another program sent has failed; its text is the dialect's error as JSON."""


class _NotYet(Exception):
    """Another worker has the task, or what it needs is away just now."""


def create_celery(settings: Settings) -> Celery:
    """The application that sends and takes tasks."""
    url = settings.celery_broker_url
    is_redis = url.startswith("redis")
    # A broker that is away costs whoever submits one attempt: `resend` makes the others.
    transport: dict[str, Any] = {"max_retries": 0, "interval_start": 0}
    if is_redis:
        # Keys of our own: other programs on the same database keep their own time for what is not acknowledged.
        own = {name: f"streaming_server.{name}" for name in ("unacked_key", "unacked_index_key", "unacked_mutex_key")}
        often = {"unacked_restore_interval": _RETRY_S, "unacked_restore_throttle": 1}  # else it looks every 100 s
        transport |= {"visibility_timeout": _VISIBILITY_S, "socket_connect_timeout": _CONNECT_S, **often, **own}
    celery = Celery("streaming_server", broker=url, backend=url if is_redis else "rpc://")
    celery.conf.update(
        # Acknowledged when done, and one at a time: a worker that is busy holds no message that an idle one could have.
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
    """Tells the workers of jobs."""

    def __init__(self, settings: Settings) -> None:
        self.celery = create_celery(settings)

    def announce(self, job: Job) -> None:
        """Tell a worker of a job. Where the broker is away that is left to `resend`."""
        self._send(job.id, job.name, job.workflow_id)

    async def resend(self, registry: WorkerRegistry) -> None:
        """Until cancelled: tell the workers once more of what they have lost sight of."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                for job_id, name, workflow_id in await asyncio.to_thread(registry.take_unsent):
                    await asyncio.to_thread(self._send, job_id, name, workflow_id)
            except Exception:
                log.exception("the tasks that wait could not be looked through")

    def _send(self, job_id: str, name: str, workflow_id: str | None) -> None:
        message = {"workflow_id": workflow_id, "task_id": job_id}
        try:
            self.celery.send_task(name, args=[message], task_id=job_id, retry=False, ignore_result=True)
        except Exception as error:  # whatever a transport raises where its broker is away
            log.warning("the broker took no message for %s: %s", job_id, error)


def run_worker(settings: Settings, engine: Engine | None = None) -> None:
    """Take tasks until a signal ends it.

    Raises:
        EngineUnavailable, StorageUnavailable: the engine cannot start, the storage cannot be used.
    """
    with _Loop() as loop:
        sender = Sender(settings)
        worker = create_worker(settings, sender.announce, engine)
        background = loop.run(_begin(worker, sender))
        _register(sender.celery, worker, create_planner(settings, worker), loop)
        try:
            options = f"--pool=threads --concurrency=1 --hostname={worker.id} --loglevel=WARNING"
            arguments = ["--quiet", "worker", *options.split(), "--without-gossip", "--without-mingle"]
            while True:
                sender.celery.worker_main(arguments)
                if state.should_stop is not None or state.should_terminate is not None:
                    break
                # RabbitMQ closes the channel of whoever works at one task for half an hour, and then Celery ends.
                log.warning("Celery has given up its connection to the broker; it begins anew")
                time.sleep(_RETRY_S)
        finally:
            loop.run(_end(worker, background))


async def _begin(worker: Worker, sender: Sender) -> list[asyncio.Task[None]]:
    await worker.service.warm()
    background = (worker.live(), worker.tidy(), sender.resend(worker.storage.workers))
    return [asyncio.create_task(work) for work in background]


async def _end(worker: Worker, background: list[asyncio.Task[None]]) -> None:
    await worker.runner.aclose()
    for task in background:
        task.cancel()
    await asyncio.wait(background)
    await worker.aclose()


def _register(celery: Celery, worker: Worker, planner: Planner, loop: _Loop) -> None:
    for name in NAMES:

        def task(self: Any, message: object = None, *, name: str = name) -> Mapping[str, Any] | None:
            if _is_ours(message):
                return loop.run(_do(worker, str(message["task_id"])))
            own, root = self.request.id, self.request.root_id  # of this thread, not of the loop's
            try:
                return loop.run(_answer(worker, planner, name, message, (own, root or own)))
            except _NotYet:
                raise self.retry(countdown=_RETRY_S) from None

        celery.task(task, bind=True, name=name, max_retries=None, throws=(TaskFailed,))


def _is_ours(message: object) -> TypeGuard[Mapping[str, object]]:
    """Whether it only names a job; a result has a status, a body its configuration."""
    return isinstance(message, Mapping) and "task_id" in message and not {"status", "workflow_config"} & set(message)


async def _do(worker: Worker, job_id: str) -> Mapping[str, Any] | None:
    """Do a job of this server's, unless it is done or somebody else's."""
    await worker.runner.run_next(job_id)
    job = await asyncio.to_thread(worker.storage.jobs.get, job_id)
    return result_of(job) if job and job.state is JobState.COMPLETED else None


async def _answer(
    worker: Worker, planner: Planner, name: str, message: object, ids: tuple[str, str]
) -> Mapping[str, Any]:
    """Do what another program asks. Its answer is awaited, since it is the next member's argument.

    What was sent becomes a row under the message's own id, so that it is done once however often it comes.

    Args:
        worker: who does it.
        planner: tells the meaning of a body.
        name: of the task.
        message: a body, or the result of the task before.
        ids: of the message, and of the first of its chain.

    Raises:
        TaskFailed: it cannot be done.
        _NotYet: it is not done yet.
    """
    job_id, root_id = (f"task_{_uuid(number)}" for number in ids)
    jobs = worker.storage.jobs
    try:
        if await asyncio.to_thread(jobs.get, job_id) is None:
            new = await _new_job(worker, planner, name, message, (job_id, root_id))
            workflow_id = f"workflow_{job_id.removeprefix('task_')}"
            await asyncio.to_thread(jobs.submit, [new], workflow_id)
        await worker.runner.run_next(job_id)
        job = await asyncio.to_thread(jobs.get, job_id)
    except (JobQueueFull, StorageFull, StorageUnavailable) as error:
        raise _NotYet from error
    except SpeechServerError as error:
        raise TaskFailed(_text(error_body(status_of(error, SHAPE), str(error), error))) from None
    if job is None:
        raise TaskFailed(_text(error_body(404, "the task was deleted", None)))
    if job.state in UNFINISHED:
        raise _NotYet
    if job.state is not JobState.COMPLETED:
        ids_of = {"task_id": job.id, "workflow_id": job.workflow_id}
        raise TaskFailed(_text({"status": "error", "error": job.message, "error_code": failure_of(job)[1], **ids_of}))
    return result_of(job)


async def _new_job(worker: Worker, planner: Planner, name: str, message: object, ids: tuple[str, str]) -> NewJob:
    """What a message asks for; ``ids`` are those of its job and of the first job of its chain.

    Raises:
        SpeechServerError: it cannot be used; the sentence says why.
    """
    job_id, root_id = ids
    if name != SPEECH:
        return NewJob(job_id, name, json.dumps(message))  # kept for the members that follow
    if isinstance(message, Mapping) and "status" in message and root_id != job_id:
        # The result of the member before: what is to be said was told to the first of the chain.
        root = await asyncio.to_thread(worker.storage.jobs.get, root_id)
        if root and root.name == SPEECH:
            return new_job(job_id, name, SpeechJob.from_json(root.payload))
        message = json.loads(root.payload) if root else None
    return new_job(job_id, name, await planner.speech(validated(WorkflowBody, message, "body")))


def _uuid(number: str) -> str:
    """An id as Celery makes them; for any other, one that stands for it."""
    try:
        return str(uuid.UUID(number))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, number))


def _text(error: Mapping[str, Any]) -> str:
    return json.dumps(error, ensure_ascii=False)


class _Loop:
    """An event loop in a thread of its own, for tasks that come on others."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="worker-loop")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def __enter__(self) -> _Loop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
