"""Jobs that speak: taken one after another, through the same slot as live requests, into a file.

Knows the job store, the speech service and the store of files; neither HTTP nor any engine or database in particular.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedRandom
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from streaming_server.audio.encoders import PcmEncoder, wav_header
from streaming_server.domain import SpeechRequest, Voice
from streaming_server.errors import (
    EngineNotReady,
    LeaseLost,
    SpeechServerError,
    StorageFull,
    StorageUnavailable,
    VoiceFileMissing,
)
from streaming_server.jobs.file_store import full_disk
from streaming_server.jobs.inspection import QUESTIONS, SPEECH, model_identity
from streaming_server.jobs.storage import Storage
from streaming_server.jobs.store import Job
from streaming_server.speech.service import EngineState, SpeechService
from streaming_server.speech.stream import SpeechStream
from streaming_server.speech.voices import VoiceLibrary
from streaming_server.text import estimated_duration_s

log = logging.getLogger(__name__)
T = TypeVar("T")

_POLL_S = 1.0
"""How often to look for jobs that other processes accepted or left."""
_REPORT_S = 0.25
"""How often the progress is written, and a job that was cancelled elsewhere is noticed."""
_PAUSE_S = 5.0
"""Before a job is tried again that could not be done for want of space."""


@dataclass(frozen=True, slots=True)
class SpeechJob:
    """The payload of a job."""

    request: SpeechRequest
    """A voice with an index is the reference folder's of that name; any other's path is a key of the store of files."""
    output: str
    """Key of the WAV file to be made."""
    memo: dict[str, Any] | None = None
    """What its dialect wants to remember of it; not looked into."""

    def to_json(self) -> str:
        return _payload().dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> SpeechJob:
        return _payload().validate_json(text)


def _payload() -> TypeAdapter[SpeechJob]:
    return TypeAdapter(SpeechJob)


class JobRunner:
    """The one who runs jobs in this process."""

    def __init__(
        self,
        storage: Storage,
        service: SpeechService,
        voices: VoiceLibrary,
        announce: Callable[[Job], None] | None = None,
    ) -> None:
        """``announce``: called in a thread with a job that can begin now that another is done; None where `run` finds
        it."""
        self._store = storage.jobs
        self._files = storage.files
        self._scratch = storage.scratch
        self._service = service
        self._voices = voices
        self._announce = announce
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    def announce(self, job: Job) -> None:
        """A job was accepted: `run` need not wait for its next look. From any thread."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._wake.set)

    def interrupt(self, job_id: str) -> None:
        """Stop a job if it runs here: the store no longer wants it."""
        if task := self._running.get(job_id):
            task.cancel()

    async def run(self) -> None:
        """Run jobs until cancelled; the one that runs then goes back to its place."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                if not await self.run_next():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_S):
                            await self._wake.wait()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop what runs, and give back what this process has claimed and not done."""
        if running := list(self._running.values()):
            for task in running:
                task.cancel()
            await asyncio.wait(running)
        with suppress(StorageFull, StorageUnavailable):  # then the leases run out
            await asyncio.to_thread(self._store.release_all, self._scratch.owner)

    async def run_next(self, job_id: str | None = None) -> bool:
        """Claim the next job, or one in particular, and do it; whether there was one to be claimed."""
        if self._service.state is not EngineState.READY:
            return False
        try:
            job = await _whole(self._store.claim, self._scratch.owner, job_id)
        except Exception:
            log.exception("no job can be taken")  # a full disk, a database that is away: it may come back
            return False
        if job is None:
            return False
        task = self._running[job.id] = asyncio.create_task(self._do(job))
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            await asyncio.wait([task])
            del self._running[job.id]
        return True

    async def _do(self, job: Job) -> None:
        """Do a claimed job, and tell the store what came of it."""
        try:
            try:
                if job.name == SPEECH:
                    following = await self._speak(job, SpeechJob.from_json(job.payload))
                else:
                    answer = await QUESTIONS[job.name](self._service, self._voices)
                    following = await _whole(self._store.finish, job, json.dumps(answer))
            except (StorageFull, StorageUnavailable, EngineNotReady) as error:
                await asyncio.to_thread(self._store.release, job, str(error))
                await asyncio.sleep(_PAUSE_S)
            except LeaseLost:
                raise
            except SpeechServerError as error:
                await asyncio.to_thread(self._store.fail, job, str(error), error.code)
            except Exception:
                log.exception("the job %s failed", job.id)
                message = "an unexpected error; the server's log has the details under the task's id"
                await asyncio.to_thread(self._store.fail, job, message, SpeechServerError.code)
            else:
                if following and self._announce:
                    await asyncio.to_thread(self._announce, following)
        except LeaseLost as error:
            log.info("job given up: %s", error)
        except (StorageFull, StorageUnavailable) as error:
            log.warning("the job %s begins anew later: %s", job.id, error)
            await asyncio.sleep(_PAUSE_S)
        except Exception:
            log.exception("what came of the job %s cannot be stored; it begins anew", job.id)

    async def _speak(self, job: Job, speech: SpeechJob) -> Job | None:
        """Say it into its file; the job that can begin then."""
        generation = speech.request.generation
        if limit := self._service.engine.info.max_mel_tokens:
            generation = replace(generation, max_mel_tokens=min(limit, generation.max_mel_tokens))
        voice = await self._local(speech.request.voice)
        request = replace(speech.request, voice=voice, generation=generation, request_id=job.id)
        if request.emotion and request.emotion.reference:
            reference = await self._local(request.emotion.reference)
            request = replace(request, emotion=replace(request.emotion, reference=reference))
        path = self._scratch.new()
        holding: asyncio.Task[None] | None = None
        try:
            async with self._service.open(request, PcmEncoder(), batch=True) as stream:
                holding = asyncio.create_task(self._hold(job, request, stream))
                writing = asyncio.create_task(self._write(stream, path))
                try:
                    await asyncio.wait([holding, writing], return_when=asyncio.FIRST_COMPLETED)
                    if holding.done():
                        holding.result()  # the lease is lost
                    size = await writing
                finally:
                    holding.cancel()
                    writing.cancel()
                    await asyncio.wait([holding, writing])
            result = {
                "sample_rate": stream.rate_hz,
                "duration": round(stream.stats.audio_s, 6),
                "size": size,
                "model_info": model_identity(self._service),
                "emotion_text_by": self._service.engine.info.emotion_text_by,
            }
            deliver = partial(self._files.put, speech.output, path)
            return await _whole(self._store.finish, job, json.dumps(result), deliver)
        finally:
            path.unlink(missing_ok=True)

    async def _hold(self, job: Job, request: SpeechRequest, stream: SpeechStream) -> None:
        """Renew the lease and report the progress for as long as this process lives."""
        expected_s = estimated_duration_s(request.text) / request.speed
        while True:
            await asyncio.sleep(min(_REPORT_S, self._store.lease_s / 3))
            progress = min(0.99, stream.stats.audio_s / expected_s)
            with suppress(StorageFull, StorageUnavailable):  # a renewal that fails is not yet a lease that is lost
                await asyncio.to_thread(self._store.renew, job, progress)

    async def _write(self, stream: SpeechStream, path: Path) -> int:
        """Bring the samples into a WAV file; its size in bytes."""
        position = 0
        with full_disk(), path.open("w+b") as file:  # closing may find it full too
            file.write(wav_header(stream.rate_hz, 0))
            while piece := await stream.buffer.read(position):
                position += len(piece)
                await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(_complete, file, wav_header(stream.rate_hz, position // 2))
            return file.seek(0, os.SEEK_END)

    async def _local(self, voice: Voice) -> Voice:
        """The voice with the file that it has on this machine.

        Raises:
            FileMissing, VoiceFileMissing: it is gone.
        """
        if voice.index is None:
            return replace(voice, path=await asyncio.to_thread(self._files.local, voice.path.as_posix()))
        if found := await self._voices.find(voice.name):
            return found
        raise VoiceFileMissing(voice.path.name)


async def _whole(work: Callable[..., T], *arguments: object) -> T:
    """Work in a thread that a cancellation waits for: nothing that the thread uses may go while it runs."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _complete(file: BufferedRandom, header: bytes) -> None:
    file.seek(0)
    file.write(header)
    file.flush()
    os.fsync(file.fileno())
