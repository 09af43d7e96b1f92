"""The interface to jobs for the dialects: submit, look up, fetch and delete jobs and chains."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from streaming_server.domain import SpeechRequest, Voice
from streaming_server.errors import JobNotFound, StorageUnavailable
from streaming_server.jobs.chains import Plan
from streaming_server.jobs.inspection import SPEECH
from streaming_server.jobs.runner import SpeechJob
from streaming_server.jobs.storage import Storage, audio_key
from streaming_server.jobs.store import UNFINISHED, Job, JobState, NewJob
from streaming_server.jobs.uploads import Upload, is_upload_id, upload_key
from streaming_server.text import preview

_ID = re.compile("[0-9a-f]{32}")
_WORKFLOW_ID = re.compile("workflow_[0-9a-f-]{32,36}")
_POLLS_S = (0.02, 0.5)
"""Minimum and maximum polling interval of a chain."""


class JobService:
    """The jobs of one server."""

    def __init__(self, storage: Storage, announce: Callable[[Job], None], interrupt: Callable[[str], None]) -> None:
        """
        Args:
            storage: the storage of the jobs.
            announce: called with a job that is ready; must not block.
            interrupt: called with the id of a deleted job, to stop it if it runs in this process.
        """
        self._storage = storage
        self._run = storage.request_threads.run
        self._announce = announce
        self._interrupt = interrupt

    async def submit(self, request: SpeechRequest) -> Job:
        """Accept a text. The job is stored durably on return.

        Raises:
            JobQueueFull, UploadNotFound, StorageFull, StorageUnavailable: as `JobStore.submit`.
        """
        job_id = uuid.uuid4().hex
        return (await self._submit([new_job(job_id, SPEECH, SpeechJob(request, audio_key(job_id)))], None))[0]

    async def submit_chain(self, plan: Plan) -> list[Job]:
        """Accept jobs that run one after another until one fails.

        Raises:
            JobQueueFull, UploadNotFound, StorageFull, StorageUnavailable: as `JobStore.submit`.
        """
        chain = [new_job(f"task_{uuid.uuid4().hex}", name, plan.speech) for name in plan.names]
        return await self._submit(chain, f"workflow_{uuid.uuid4().hex}")

    async def get(self, job_id: str) -> Job:
        """
        Raises:
            JobNotFound: the id is unknown or has expired.
        """
        job = await self._run(self._storage.jobs.get, job_id) if _ID.fullmatch(job_id) else None
        if job is None:
            raise JobNotFound(job_id)
        return job

    async def chain(self, workflow_id: str) -> list[Job]:
        """As `JobStore.chain`.

        Raises:
            JobNotFound: the id is unknown or has expired.
        """
        is_id = _WORKFLOW_ID.fullmatch(workflow_id)
        jobs = await self._run(self._storage.jobs.chain, workflow_id) if is_id else []
        if not jobs:
            raise JobNotFound(workflow_id)
        return jobs

    async def ended(
        self, workflow_id: str, timeout_s: float, is_left: Callable[[], Awaitable[bool]]
    ) -> list[Job] | None:
        """Wait until all jobs of a workflow have ended; None after the timeout or on a disconnect.

        Returns:
            The jobs, of which the last one has its payload and result.

        Raises:
            JobNotFound: as `chain`.
        """
        loop = asyncio.get_running_loop()
        until_s, pause_s = loop.time() + timeout_s, _POLLS_S[0]
        while True:
            with suppress(StorageUnavailable):  # the workflow continues, and so does the wait
                jobs = await self.chain(workflow_id)
                if not any(job.state in UNFINISHED for job in jobs):
                    if (last := await self._run(self._storage.jobs.get, jobs[-1].id)) is None:
                        raise JobNotFound(workflow_id)
                    return [*jobs[:-1], last]
            if loop.time() >= until_s or await is_left():
                return None
            await asyncio.sleep(min(pause_s, until_s - loop.time()))
            pause_s = min(pause_s * 1.5, _POLLS_S[1])

    async def page(self, limit: int, offset: int, states: Sequence[JobState]) -> tuple[list[Job], int]:
        """As `JobStore.page`."""
        return await self._run(self._storage.jobs.page, limit, offset, states)

    async def audio(self, job: Job) -> Path:
        """Return the WAV file of a completed job.

        Raises:
            FileMissing: it does not exist any more.
        """
        return await self._storage.file_threads.run(self._storage.files.local, audio_key(job.id))

    async def upload(self, upload_id: str) -> Upload | None:
        """As `Uploads.get`."""
        return await self._run(self._storage.uploads.get, upload_id)

    async def delete(self, job_id: str) -> None:
        """Delete a job and its audio; a running one is stopped.

        Raises:
            JobNotFound: as `get`.
        """
        if not _ID.fullmatch(job_id) or not await self._run(self._storage.jobs.delete, job_id):
            raise JobNotFound(job_id)
        self._interrupt(job_id)
        await self._storage.file_threads.run(self._storage.files.delete, audio_key(job_id))

    async def _submit(self, chain: Sequence[NewJob], workflow_id: str | None) -> list[Job]:
        jobs = await self._run(self._storage.jobs.submit, chain, workflow_id)
        self._announce(jobs[0])
        return jobs


def new_job(job_id: str, name: str, speech: SpeechJob | None) -> NewJob:
    """Create a job for the store; ``speech`` is the payload of a speech job."""
    if name != SPEECH or speech is None:
        return NewJob(job_id, name, "{}")
    request, emotion = speech.request, speech.request.emotion
    voices = [request.voice]
    if emotion and emotion.reference:
        voices.append(emotion.reference)
        emotion = replace(emotion, reference=_by_key(emotion.reference))
    speech = replace(speech, request=replace(request, voice=_by_key(request.voice), emotion=emotion))
    return NewJob(
        job_id, name, speech.to_json(), {voice.name for voice in voices if _is_upload(voice)}, preview(request.text)
    )


def _by_key(voice: Voice) -> Voice:
    """Return the voice of an upload with the key as its path, which is the same on every machine."""
    return replace(voice, path=Path(upload_key(voice.name))) if _is_upload(voice) else voice


def _is_upload(voice: Voice) -> bool:
    return voice.index is None and is_upload_id(voice.name)
