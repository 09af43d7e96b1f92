"""Speech that is asked for now and fetched later: submit, look, fetch, delete.

The one place that keeps the rows, the files and the runner of a job together. Knows no dialect.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from streaming_server.core.jobs import Job, JobState
from streaming_server.core.runner import JobRunner, SpeechJob
from streaming_server.core.storage import Storage, audio_key
from streaming_server.core.uploads import upload_key
from streaming_server.domain import SpeechRequest, Voice
from streaming_server.errors import JobNotFound

_ID = re.compile("[0-9a-f]{32}")


class Backlog:
    """The jobs of one server."""

    def __init__(self, storage: Storage, runner: JobRunner) -> None:
        self._storage = storage
        self._runner = runner

    async def submit(self, request: SpeechRequest) -> Job:
        """Accept a text; once this returns it will be spoken, whatever happens to the process.

        Raises:
            JobQueueFull, UploadNotFound, StorageFull: as `JobStore.submit`.
        """
        job_id = uuid.uuid4().hex
        emotion = request.emotion
        if emotion and emotion.reference:
            emotion = replace(emotion, reference=_by_key(emotion.reference))
        request = replace(request, voice=_by_key(request.voice), emotion=emotion)
        voices = [request.voice, *([emotion.reference] if emotion and emotion.reference else [])]
        needed = {voice.name for voice in voices if voice.index is None}
        payload = SpeechJob(request, audio_key(job_id)).to_json()
        job = await asyncio.to_thread(self._storage.jobs.submit, job_id, payload, needed, "accepted")
        self._runner.wake()
        return job

    async def get(self, job_id: str) -> Job:
        """
        Raises:
            JobNotFound: there is none of that id, or no longer.
        """
        job = await asyncio.to_thread(self._storage.jobs.get, job_id) if _ID.fullmatch(job_id) else None
        if job is None:
            raise JobNotFound(job_id)
        return job

    async def page(self, limit: int, offset: int, states: Sequence[JobState]) -> tuple[list[Job], int]:
        """As `JobStore.page`."""
        return await asyncio.to_thread(self._storage.jobs.page, limit, offset, states)

    async def audio(self, job: Job) -> Path:
        """The WAV file of a completed job.

        Raises:
            FileMissing: it is gone.
        """
        return await asyncio.to_thread(self._storage.files.local, audio_key(job.id))

    async def delete(self, job_id: str) -> None:
        """Forget a job and its audio; one that is not over is stopped.

        Raises:
            JobNotFound: as `get`.
        """
        if not _ID.fullmatch(job_id) or not await asyncio.to_thread(self._storage.jobs.delete, job_id):
            raise JobNotFound(job_id)
        self._runner.interrupt(job_id)
        await asyncio.to_thread(self._storage.files.delete, audio_key(job_id))


def _by_key(voice: Voice) -> Voice:
    """An upload's path is this machine's own; its key is everybody's."""
    return voice if voice.index is not None else replace(voice, path=Path(upload_key(voice.name)))
