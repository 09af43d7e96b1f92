"""The Celery worker: runs the jobs named by messages, and tasks sent by other programs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeGuard, TypeVar

from celery import Celery
from celery.worker import state

from streaming_server.components import create_worker
from streaming_server.errors import (
    DeviceFailed,
    JobNotFound,
    JobQueueFull,
    SpeechServerError,
    StorageFull,
    StorageUnavailable,
)
from streaming_server.jobs.celery_client import RETRY_S, Sender
from streaming_server.jobs.chains import WorkflowMessages
from streaming_server.jobs.inspection import QUESTIONS, SPEECH
from streaming_server.jobs.runner import SpeechJob
from streaming_server.jobs.service import new_job
from streaming_server.jobs.store import UNFINISHED, Job, JobState, NewJob
from streaming_server.jobs.worker import Worker
from streaming_server.settings import Settings

log = logging.getLogger(__name__)
NAMES = (SPEECH, *QUESTIONS)
T = TypeVar("T")


class TaskFailed(Exception):
    """A task of another program failed; the message is the error as JSON."""


class _NotYet(Exception):
    """The task runs in another worker, or waits for a retry."""


def run_worker(
    settings: Settings,
    messages: Callable[[Worker], WorkflowMessages],
    create: Callable[[Settings, Callable[[Job], None]], Worker] = create_worker,
) -> None:
    """Run tasks until a signal ends the process.

    Args:
        settings: the settings.
        messages: creates the translation of messages for the worker.
        create: creates the worker.

    Raises:
        DeviceFailed: the device failed; a new process is required.
        EngineUnavailable, StorageUnavailable: the engine cannot start, or the storage cannot be used.
    """
    with _Loop() as loop:
        sender = Sender(settings.celery_broker_url)
        worker = create(settings, sender.announce)
        background = loop.run(_begin(worker, sender))
        _register(sender.celery, worker, messages(worker), loop)
        try:
            options = f"--pool=threads --concurrency=1 --hostname={worker.id} --loglevel=WARNING"
            arguments = ["--quiet", "worker", *options.split(), "--without-gossip", "--without-mingle"]
            while True:
                sender.celery.worker_main(arguments)
                if state.should_stop is not None or state.should_terminate is not None:
                    break
                # RabbitMQ closes the channel of a worker that runs one task for half an hour; Celery then exits.
                log.warning("broker connection lost: restarting Celery")
                time.sleep(RETRY_S)
        finally:
            loop.run(_end(worker, background))
    if worker.service.device_failed.is_set():
        raise DeviceFailed


async def _begin(worker: Worker, sender: Sender) -> list[asyncio.Task[None]]:
    await worker.service.warm()
    background = (
        worker.live(),
        worker.tidy(),
        sender.send(),
        sender.resend(worker.storage.workers),
        _stop_without_device(worker.service.device_failed),
    )
    return [asyncio.create_task(work) for work in background]


async def _stop_without_device(failed: asyncio.Event) -> None:
    """Stop Celery as on SIGTERM, after the running tasks; speech tasks end because of the failure."""
    await failed.wait()
    log.error("worker ends: exit_status=%d reason='the device failed'", DeviceFailed.exit_status)
    state.should_stop = os.EX_OK


async def _end(worker: Worker, background: list[asyncio.Task[None]]) -> None:
    await worker.runner.aclose()
    for task in background:
        task.cancel()
    await asyncio.wait(background)
    await worker.aclose()


def _register(celery: Celery, worker: Worker, messages: WorkflowMessages, loop: _Loop) -> None:
    for name in NAMES:

        def task(self: Any, message: object = None, *, name: str = name) -> Mapping[str, Any] | None:
            if _is_ours(message):
                return loop.run(_run(worker, messages, str(message["task_id"])))
            own, root = self.request.id, self.request.root_id  # available in this thread only
            try:
                return loop.run(_answer(worker, messages, name, message, (own, root or own)))
            except _NotYet:
                raise self.retry(countdown=RETRY_S) from None

        celery.task(task, bind=True, name=name, max_retries=None, throws=(TaskFailed,))


def _is_ours(message: object) -> TypeGuard[Mapping[str, object]]:
    """Whether a message only names a job, unlike a body or the result of a previous task."""
    return isinstance(message, Mapping) and "task_id" in message and not {"status", "workflow_config"} & set(message)


async def _run(worker: Worker, messages: WorkflowMessages, job_id: str) -> Mapping[str, Any] | None:
    """Run a job that the server accepted, unless it has ended or runs in another worker."""
    await worker.runner.run_next(job_id)
    job = await asyncio.to_thread(worker.storage.jobs.get, job_id)
    return messages.result(job) if job and job.state is JobState.COMPLETED else None


async def _answer(
    worker: Worker, messages: WorkflowMessages, name: str, message: object, ids: tuple[str, str]
) -> Mapping[str, Any]:
    """Run a task of another program and return its result, which is the argument of the next task.

    The message becomes a job under its own id, so that repeated deliveries run it once.

    Args:
        worker: runs the job.
        messages: translates the message.
        name: name of the task.
        message: a body, or the result of the previous task.
        ids: ids of the message, and of the first message of its chain.

    Raises:
        TaskFailed: the task failed.
        _NotYet: the task has not ended.
    """
    job_id, root_id = (f"task_{_uuid(number)}" for number in ids)
    jobs = worker.storage.jobs
    try:
        if await asyncio.to_thread(jobs.get, job_id) is None:
            new = await _new_job(worker, messages, name, message, (job_id, root_id))
            workflow_id = f"workflow_{job_id.removeprefix('task_')}"
            await asyncio.to_thread(jobs.submit, [new], workflow_id)
        await worker.runner.run_next(job_id)
        job = await asyncio.to_thread(jobs.get, job_id)
    except (JobQueueFull, StorageFull, StorageUnavailable) as error:
        raise _NotYet from error
    except SpeechServerError as error:
        raise TaskFailed(_text(messages.refusal(error))) from None
    if job is None:
        raise TaskFailed(_text(messages.refusal(JobNotFound(job_id))))
    if job.state in UNFINISHED:
        raise _NotYet
    if job.state is not JobState.COMPLETED:
        raise TaskFailed(_text(messages.failure(job)))
    return messages.result(job)


async def _new_job(
    worker: Worker, messages: WorkflowMessages, name: str, message: object, ids: tuple[str, str]
) -> NewJob:
    """Create the job for a message; ``ids`` are those of its job and of the first job of its chain.

    Raises:
        SpeechServerError: the message is invalid.
    """
    job_id, root_id = ids
    if name != SPEECH:
        return NewJob(job_id, name, json.dumps(message))  # kept for the tasks that follow
    if isinstance(message, Mapping) and "status" in message and root_id != job_id:
        # The result of the previous task: the text is in the first message of the chain.
        root = await asyncio.to_thread(worker.storage.jobs.get, root_id)
        if root and root.name == SPEECH:
            return new_job(job_id, name, SpeechJob.from_json(root.payload))
        message = json.loads(root.payload) if root else None
    return new_job(job_id, name, await messages.parse(message))


def _uuid(number: str) -> str:
    """Return the id of a message as a UUID; other ids are mapped to one."""
    try:
        return str(uuid.UUID(number))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, number))


def _text(error: Mapping[str, Any]) -> str:
    return json.dumps(error, ensure_ascii=False)


class _Loop:
    """An event loop in its own thread, called from the threads of Celery."""

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
