"""Runs the jobs of one process, one after another, through the same slot as live requests."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BufferedRandom
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from streaming_server.audio.encoders import PcmEncoder, wav_header
from streaming_server.domain import Capability, Emotion, SpeechRequest, Voice
from streaming_server.errors import (
    EngineNotReady,
    FileMissing,
    FileOutside,
    InvalidRequest,
    LeaseLost,
    SpeechServerError,
    StorageFull,
    StorageUnavailable,
    VoiceFileMissing,
    VoiceUnreadable,
)
from streaming_server.jobs.file_store import storage_errors
from streaming_server.jobs.inspection import SPEECH, Inspector
from streaming_server.jobs.storage import Storage
from streaming_server.jobs.store import Job
from streaming_server.speech.service import EngineState, SpeechService
from streaming_server.speech.stream import SpeechStream
from streaming_server.speech.voices import VoiceLibrary
from streaming_server.text import estimated_duration_s

log = logging.getLogger(__name__)

_POLL_S = 1.0
"""Interval of polling for jobs of other processes."""
_REPORT_S = 0.25
"""Interval of progress updates, which also detect cancelled jobs."""
_MAX_PAUSE_S = 8.0
"""Maximum pause between attempts while the database is unavailable."""
_NOT_RETRIED = (InvalidRequest, VoiceFileMissing, VoiceUnreadable, FileMissing, FileOutside)
"""Errors caused by the job itself, which are not retried."""


@dataclass(frozen=True, slots=True)
class SpeechJob:
    """The payload of a speech job."""

    request: SpeechRequest
    """The path of a voice without an index is a key of the file store; others are found by name."""
    output: str
    """Key of the output file, a WAV file."""
    memo: dict[str, Any] | None = None
    """Fields that the dialect needs for its response; not interpreted here."""

    def to_json(self) -> str:
        return _PAYLOAD.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> SpeechJob:
        return _PAYLOAD.validate_json(text)


_PAYLOAD = TypeAdapter(SpeechJob)


@dataclass(slots=True)
class _Attempt:
    """A claimed job while it runs."""

    job: Job
    progress: Callable[[], float] = lambda: 0.0
    """Returns the progress, 0.0-0.99."""
    recordings: list[Path] = field(default_factory=list)
    """Local paths of its files, which must exist until it ends."""
    is_finishing: bool = False
    """Whether its result is being delivered and recorded, which nothing interrupts."""


class JobRunner:
    """Claims jobs and runs them in this process."""

    def __init__(
        self,
        storage: Storage,
        service: SpeechService,
        voices: VoiceLibrary,
        inspector: Inspector,
        announce: Callable[[Job], None] | None = None,
    ) -> None:
        """``announce``: called with the next job of a workflow that is ready, must not block; None if `run` polls."""
        self._store = storage.jobs
        self._files = storage.files
        self._scratch = storage.scratch
        self._threads = storage.job_threads
        self._service = service
        self._voices = voices
        self._inspector = inspector
        self._announce = announce
        self._wake = asyncio.Event()
        self._outage_pause_s = _POLL_S
        self._running: dict[str, asyncio.Task[None]] = {}

    def announce(self, job: Job) -> None:
        """Wake `run` for an accepted job."""
        self._wake.set()

    def interrupt(self, job_id: str) -> None:
        """Stop a cancelled or deleted job if it runs in this process."""
        if task := self._running.get(job_id):
            task.cancel()

    async def run(self) -> None:
        """Run jobs until cancelled; a running job is then requeued."""
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
        """Stop the running jobs and requeue them."""
        if running := list(self._running.values()):
            for task in running:
                task.cancel()
            await asyncio.wait(running)
        with suppress(StorageFull, StorageUnavailable):  # the jobs are requeued when their leases expire
            await self._threads.run(self._store.release_all, self._scratch.owner)

    async def run_next(self, job_id: str | None = None) -> bool:
        """Claim the next job, or the one with ``job_id``, and run it; returns whether there was one."""
        if self._service.state is not EngineState.READY:
            return False
        try:
            job = await self._threads.run_to_end(self._store.claim, self._scratch.owner, job_id)
        except (StorageFull, StorageUnavailable) as error:
            log.warning("claim failed: %s", error)
            await asyncio.sleep(self._outage_pause_s)
            self._outage_pause_s = min(2 * self._outage_pause_s, _MAX_PAUSE_S)
            return False
        except Exception:
            log.exception("claim failed")
            return False
        self._outage_pause_s = _POLL_S
        if job is None:
            return False
        task = self._running[job.id] = asyncio.create_task(self._run_claimed(job))
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            await asyncio.wait([task])
            del self._running[job.id]
        return True

    async def _run_claimed(self, job: Job) -> None:
        """Run a claimed job and record its outcome."""
        try:
            following = await self._perform_held(_Attempt(job))
        except LeaseLost as error:
            log.info("lease lost: %s", error)
        except (StorageFull, StorageUnavailable) as error:
            log.warning("job postponed: id=%s reason=%r", job.id, str(error))
            await self._record(job, self._store.postpone, str(error), error.code)
        except EngineNotReady as error:
            await self._record(job, self._store.release, str(error))
        except _NOT_RETRIED as error:
            await self._record(job, self._store.fail, str(error), error.code)
        except SpeechServerError as error:
            log.warning("job attempt failed: id=%s reason=%r", job.id, str(error))
            await self._record(job, self._store.retry, str(error), error.code)
        except Exception:
            log.exception("job attempt failed: id=%s", job.id)
            message = "unexpected error; see the server's log for this task's id"
            await self._record(job, self._store.retry, message, SpeechServerError.code)
        else:
            if following and self._announce:
                self._announce(following)

    async def _record(self, job: Job, change: Callable[..., None], *arguments: str) -> None:
        """Record the outcome of an attempt, retrying while the database is unavailable."""
        pause_s = _POLL_S
        while True:
            try:
                await self._threads.run_to_end(change, job, *arguments)
                return
            except LeaseLost as error:
                log.info("lease lost: %s", error)
                return
            except (StorageFull, StorageUnavailable) as error:
                log.warning("outcome not recorded: id=%s reason=%r; retrying", job.id, str(error))
            except Exception:
                log.exception("outcome not recorded: id=%s; the job is requeued when its lease expires", job.id)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _perform_held(self, attempt: _Attempt) -> Job | None:
        """Run a job, renewing its lease until its result is recorded, and return the next job of its workflow.

        Raises:
            LeaseLost: the job was cancelled, deleted or taken over.
        """
        holding = asyncio.create_task(self._hold(attempt))
        performing = asyncio.create_task(self._perform(attempt))
        try:
            await asyncio.wait([holding, performing], return_when=asyncio.FIRST_COMPLETED)
            if holding.done() and not attempt.is_finishing:
                holding.result()  # raises LeaseLost
            # A job that finishes right now has no lease any more; whether it lost it before is for `finish` to say.
            return await performing
        finally:
            holding.cancel()
            performing.cancel()
            await asyncio.gather(holding, performing, return_exceptions=True)

    async def _perform(self, attempt: _Attempt) -> Job | None:
        """Run a job and return the next job of its workflow."""
        job = attempt.job
        if job.name == SPEECH:
            return await self._speak(attempt, SpeechJob.from_json(job.payload))
        answer = await self._inspector.answer(job.name)
        attempt.is_finishing = True
        return await self._threads.run_to_end(self._store.finish, job, json.dumps(answer))

    async def _speak(self, attempt: _Attempt, speech: SpeechJob) -> Job | None:
        """Synthesise a speech job to its file and return the next job of its workflow."""
        request = await self._local_request(speech.request, attempt)
        while True:
            try:
                return await self._synthesise(attempt, request, speech.output)
            except VoiceFileMissing:
                # A recording that was converted while the job waited for the slot is found under its new name.
                earlier, request = request, await self._local_request(speech.request, attempt)
                if request == earlier:
                    raise

    async def _local_request(self, request: SpeechRequest, attempt: _Attempt) -> SpeechRequest:
        """Return the request with the local paths of its recordings, and with the job's id.

        Raises:
            FileMissing, VoiceFileMissing: a file does not exist.
        """
        request = replace(request, voice=await self._local(request.voice, attempt), request_id=attempt.job.id)
        if request.emotion and request.emotion.reference:
            reference = await self._local(request.emotion.reference, attempt)
            request = replace(request, emotion=replace(request.emotion, reference=reference))
        return request

    async def _synthesise(self, attempt: _Attempt, request: SpeechRequest, output: str) -> Job | None:
        job = attempt.job
        path = self._scratch.new(job.id)
        expected_s = estimated_duration_s(request.text) / request.speed
        try:
            async with self._service.open(request, PcmEncoder(), batch=True) as stream:
                attempt.progress = lambda: min(0.99, stream.stats.audio_s / expected_s)
                size = await self._write(stream, path)
            result = {
                "sample_rate": stream.rate_hz,
                "duration": round(stream.stats.audio_s, 6),
                "size": size,
                "model_info": self._inspector.model(),
                "emotion_text_by": self._service.engine.info.emotion_text_by,
                "emotion_ignored": self._ignored(request.emotion),
            }
            attempt.is_finishing = True
            return await self._threads.run_to_end(self._finish, job, json.dumps(result), output, path)
        finally:
            self._scratch.remove(path)

    def _finish(self, job: Job, result: str, output: str, path: Path) -> Job | None:
        # Staged first, as a copy or an upload is slow and the transaction of `finish` holds SQLite's write lock.
        with self._files.staged(output, path) as put:
            return self._store.finish(job, result, put)

    def _ignored(self, emotion: Emotion | None) -> list[Capability]:
        """Return the capabilities that an emotion requires and the engine lacks."""
        if emotion is None:
            return []
        capabilities = self._service.engine.info.capabilities
        needed = {
            Capability.EMOTION_REFERENCE: emotion.reference,
            Capability.EMOTION_VECTOR: emotion.vector,
            Capability.EMOTION_TEXT: emotion.text,
            Capability.EMOTION_RANDOM: emotion.random,
        }
        return [name for name, value in needed.items() if value and name not in capabilities]

    async def _hold(self, attempt: _Attempt) -> None:
        """Renew the lease and report the progress until cancelled."""
        while True:
            await asyncio.sleep(min(_REPORT_S, self._store.lease_s / 3))
            with suppress(StorageFull, StorageUnavailable):  # a failed renewal does not lose the lease yet
                await self._threads.run(self._renew, attempt)

    def _renew(self, attempt: _Attempt) -> None:
        for path in attempt.recordings:
            self._files.touch(path)
        self._store.renew(attempt.job, attempt.progress())

    async def _write(self, stream: SpeechStream, path: Path) -> int:
        """Write the samples to a WAV file and return its size in bytes."""
        position = 0
        with storage_errors(), path.open("w+b") as file:  # closing can fail on a full disk too
            file.write(wav_header(stream.rate_hz, 0))
            while piece := await stream.buffer.read(position):
                position += len(piece)
                await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(_complete, file, wav_header(stream.rate_hz, position // 2))
            return file.seek(0, os.SEEK_END)

    async def _local(self, voice: Voice, attempt: _Attempt) -> Voice:
        """Return the voice with the local path of its file.

        Raises:
            FileMissing, VoiceFileMissing: the file does not exist.
        """
        if voice.is_preset:
            return voice
        if voice.index is None:
            path = await asyncio.to_thread(self._files.local, voice.path.as_posix())
            attempt.recordings.append(path)
            return replace(voice, path=path)
        # The recording of a worker, or a converted one, may have another suffix.
        if found := await self._voices.find(voice.path.name) or await self._voices.find(voice.name):
            return found
        raise VoiceFileMissing(voice.path.name)


def _complete(file: BufferedRandom, header: bytes) -> None:
    file.seek(0)
    file.write(header)
    file.flush()
    os.fsync(file.fileno())
