"""Celery: jobs are told to workers by name and id, and workers do them.

The truth is the row in SQL and its lease; a message only says that there is something to do. One that is lost is sent
once more, one that comes twice finds nothing to claim. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from celery import Celery
from celery.exceptions import Reject

from streaming_server.api.workflows import Planner, failure_of, result_of
from streaming_server.api.workflows_operations import WorkflowBody
from streaming_server.app import create_planner, create_worker
from streaming_server.core.backlog import new_job
from streaming_server.core.jobs import UNFINISHED, Job, JobState
from streaming_server.core.stages import QUESTIONS, SPEECH
from streaming_server.core.worker import Worker
from streaming_server.core.workers import Workforce
from streaming_server.engines.base import Engine
from streaming_server.errors import InvalidRequest, SpeechServerError
from streaming_server.settings import Settings

log = logging.getLogger(__name__)
NAMES = (SPEECH, *QUESTIONS)
_LOOK_S = 1.0
_VISIBILITY_S = 300
_RETRY_S = 2
T = TypeVar("T")


class TaskFailed(Exception):
    """A task that another program sent has failed; its text is the dialect's error as JSON."""


def create_celery(settings: Settings) -> Celery:
    """The application that sends and takes tasks."""
    celery = Celery("streaming_server", broker=settings.celery_broker_url)
    celery.conf.update(
        # Acknowledged when done, and one at a time: a worker that is busy holds no message that an idle one could have.
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": _VISIBILITY_S},
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
        """Tell a worker of a job. Where the broker is away that is left to `send_forgotten`."""
        self._send(job.id, job.name, job.workflow_id)

    async def send_forgotten(self, workforce: Workforce) -> None:
        """Until cancelled: tell the workers once more of what they have lost sight of."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                for job_id, name, workflow_id in await asyncio.to_thread(workforce.forgotten):
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
            command = f"worker --pool=threads --concurrency=1 --hostname={worker.id} --loglevel=WARNING"
            sender.celery.worker_main([*command.split(), "--quiet", "--without-gossip", "--without-mingle"])
        finally:
            loop.run(_end(worker, background))


async def _begin(worker: Worker, sender: Sender) -> list[asyncio.Task[None]]:
    await worker.service.warm()
    background = (worker.live(), worker.tidy(), sender.send_forgotten(worker.storage.workforce))
    return [asyncio.create_task(work) for work in background]


async def _end(worker: Worker, background: list[asyncio.Task[None]]) -> None:
    for task in background:
        task.cancel()
    await asyncio.wait(background)
    await worker.runner.release()
    await worker.aclose()


def _register(celery: Celery, worker: Worker, planner: Planner, loop: _Loop) -> None:
    for name in NAMES:

        def task(self: Any, message: object, *, name: str = name) -> Mapping[str, Any] | None:
            return loop.run(_handle(worker, planner, self, name, message))

        celery.task(task, bind=True, name=name, max_retries=None)


async def _handle(worker: Worker, planner: Planner, task: Any, name: str, message: object) -> Mapping[str, Any] | None:
    """Do the job that a message names, or the one that it is."""
    if isinstance(message, Mapping) and "task_id" in message and "status" not in message:
        job_id = str(message["task_id"])
        await worker.runner.run_next(job_id)
        job = await asyncio.to_thread(worker.storage.jobs.get, job_id)
        return result_of(job) if job and job.state is JobState.COMPLETED else None
    # Another program's: what it sent becomes a row under the message's own id, so that it is done once however often it
    # comes. Its answer is awaited, since it is the next member's argument.
    job_id = f"task_{task.request.id}"
    if await asyncio.to_thread(worker.storage.jobs.get, job_id) is None:
        await _accept(worker, planner, job_id, name, message)
    await worker.runner.run_next(job_id)
    job = await asyncio.to_thread(worker.storage.jobs.get, job_id)
    if job is None:
        raise Reject("the task was deleted", requeue=False)
    if job.state in UNFINISHED:  # another worker has it
        raise task.retry(countdown=_RETRY_S)
    if job.state is not JobState.COMPLETED:
        raise TaskFailed(_error_text(job.message, failure_of(job)[1], job))
    return result_of(job)


async def _accept(worker: Worker, planner: Planner, job_id: str, name: str, message: object) -> None:
    speech = None
    if name == SPEECH:
        try:
            _, speech = await planner.plan(WorkflowBody.model_validate(message))
        except (SpeechServerError, ValueError) as error:
            raise TaskFailed(_error_text(str(error), "INVALID_INPUT", None)) from None
    workflow_id = f"workflow_{job_id.removeprefix('task_')}"
    try:
        await asyncio.to_thread(worker.storage.jobs.submit, [new_job(job_id, name, speech)], workflow_id)
    except InvalidRequest as error:
        raise TaskFailed(_error_text(str(error), "INVALID_INPUT", None)) from None


def _error_text(message: str, code: str, job: Job | None) -> str:
    error = {"status": "error", "error": message, "error_code": code}
    ids = {"task_id": job and job.id, "workflow_id": job and job.workflow_id}
    return json.dumps(error | ids, ensure_ascii=False)


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
