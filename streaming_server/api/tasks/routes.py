"""The task dialect, ``/api/v1``: upload a voice, submit a text, poll, download."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from streaming_server.api.http import Dialect, ErrorShape, parse_body, parse_query
from streaming_server.api.multipart import file_part
from streaming_server.api.operations import ApiRoute
from streaming_server.api.requests import EmotionFields, RequestBuilder
from streaming_server.api.responses import AudioFileResponse, WholeSpeechResponse
from streaming_server.api.tasks import schemas as operations
from streaming_server.api.tasks.schemas import (
    TAG,
    Deleted,
    FileRecord,
    Submitted,
    Task,
    TaskBody,
    TaskError,
    TaskHealth,
    TaskRecord,
    Tasks,
    TasksQuery,
    Uploaded,
    iso,
    task_record,
)
from streaming_server.audio.probe import BASIC_FORMATS
from streaming_server.domain import SpeechRequest, Voice
from streaming_server.errors import EngineNotReady, InvalidRequest, SpeechServerError, UploadNotFound, VoiceUnknown
from streaming_server.jobs.service import JobService
from streaming_server.jobs.store import Job, JobState
from streaming_server.jobs.uploads import Upload, Uploads, is_upload_id
from streaming_server.settings import Settings
from streaming_server.speech.service import EngineState, SpeechService
from streaming_server.speech.voices import VoiceLibrary
from streaming_server.text import forbidden_character

_SUFFIXES = (".wav", ".mp3", ".m4a", ".flac")
_MAX_NAME = 255


def error_body(status: int, message: str, error: SpeechServerError | None) -> TaskError:
    """Return an error in the dialect's shape."""
    return {"success": False, "message": message}


SHAPES = {"/api/v1": ErrorShape(error_body, TaskError)}


@dataclass(frozen=True, slots=True)
class TasksDialect(Dialect):
    """The task routes of one service."""

    service: SpeechService
    voices: VoiceLibrary
    jobs: JobService
    uploads: Uploads
    requests: RequestBuilder
    settings: Settings
    shapes: ClassVar = SHAPES

    def routes(self) -> list[BaseRoute]:
        return [
            ApiRoute("/api/v1/health", self.health, TAG, operations.HEALTH),
            ApiRoute("/api/v1/tts", self.submit, TAG, operations.SUBMIT, methods=["POST"]),
            ApiRoute("/api/v1/tts/sync", self.sync, TAG, operations.SYNC, methods=["POST"]),
            ApiRoute("/api/v1/task/{task_id}", self.task, TAG, operations.TASK),
            ApiRoute("/api/v1/task/{task_id}", self.delete, TAG, operations.DELETE, methods=["DELETE"]),
            ApiRoute("/api/v1/audio/{task_id}", self.audio, TAG, operations.AUDIO),
            ApiRoute("/api/v1/tasks", self.tasks, TAG, operations.TASKS),
            ApiRoute("/api/v1/upload/audio", self.upload, TAG, operations.UPLOAD, methods=["POST"]),
            ApiRoute("/api/v1/file/{file_id}", self.file, TAG, operations.FILE),
        ]

    async def health(self, request: Request) -> Response:
        self._check_ready()
        body: TaskHealth = {"success": True, "status": "healthy", "model_loaded": True, "timestamp": time.time()}
        return JSONResponse(body)

    async def submit(self, request: Request) -> Response:
        has_workers = bool(self.settings.celery_broker_url)
        speech = await self._speech_request(request, for_worker=has_workers)
        if not has_workers:  # with a broker, the workers have the engines and may start later
            self._check_ready()
        job = await self.jobs.submit(speech)
        record = self._record(job)
        body: Submitted = {
            "success": True,
            "task_id": job.id,
            "status": record["status"],
            "message": record["message"],
        }
        return JSONResponse(body)

    async def sync(self, request: Request) -> WholeSpeechResponse:
        return WholeSpeechResponse(self.service, await self._speech_request(request), {}, self.settings.send_timeout_s)

    async def task(self, request: Request) -> Response:
        body: Task = {"success": True, **self._record(await self.jobs.get(request.path_params["task_id"]))}
        return JSONResponse(body)

    async def delete(self, request: Request) -> Response:
        task_id = request.path_params["task_id"]
        await self.jobs.delete(task_id)
        body: Deleted = {"success": True, "task_id": task_id, "message": "deleted"}
        return JSONResponse(body)

    async def audio(self, request: Request) -> Response:
        job = await self.jobs.get(request.path_params["task_id"])
        if job.state is not JobState.COMPLETED:
            status = self._record(job)["status"]
            raise InvalidRequest(f"the task is {status}, not completed: there is no audio", "task_id", "path")
        path = await self.jobs.audio(job)
        return AudioFileResponse(path, media_type="audio/wav", filename=path.name)

    async def tasks(self, request: Request) -> Response:
        query = parse_query(request, TasksQuery)
        jobs, total = await self.jobs.page(query.limit, query.offset, query.states)
        body: Tasks = {"success": True, "tasks": [self._record(job) for job in jobs], "total": total}
        return JSONResponse(body)

    async def upload(self, request: Request) -> Response:
        given, pieces = await file_part(request, "file", self.settings.upload_max_mb * 1024 * 1024)
        filename = re.split(r"[/\\]", given)[-1]  # some clients send a path
        if not 0 < len(filename) <= _MAX_NAME or forbidden_character(filename):
            raise InvalidRequest(f"the file name must have 1 to {_MAX_NAME} printable characters", "file")
        if not filename.lower().endswith(_SUFFIXES):
            raise InvalidRequest(f"the file name must end in one of {', '.join(_SUFFIXES)}", "file")
        upload, is_duplicate = await self.uploads.receive(filename, pieces, BASIC_FORMATS)
        body: Uploaded = {**_file_record(upload), "is_duplicate": is_duplicate}
        return JSONResponse(body)

    async def file(self, request: Request) -> Response:
        file_id = request.path_params["file_id"]
        if not is_upload_id(file_id):
            raise InvalidRequest("file_id must be 64 lower-case hex digits, the SHA-256 of a file", "file_id", "path")
        upload = await self.jobs.upload(file_id)
        if upload is None:
            raise UploadNotFound(file_id)
        return JSONResponse(_file_record(upload))

    def _record(self, job: Job) -> TaskRecord:
        return task_record(job, self.settings.audio_keep_s)

    def _check_ready(self) -> None:
        """
        Raises:
            EngineNotReady: the model is loading or has failed to load.
        """
        if self.service.state is not EngineState.READY:
            raise EngineNotReady

    async def _speech_request(self, request: Request, *, for_worker: bool = False) -> SpeechRequest:
        """Build the request of a body; ``for_worker`` as for `RequestBuilder.build`.

        Raises:
            InvalidRequest: a field is invalid, or the field that the emotion's method requires is missing.
            UploadNotFound: the file of an id does not exist.
        """
        body = await parse_body(request, TaskBody)
        fields = EmotionFields(
            body.emotion_audio,
            ("emo_vector", body.emo_vector),
            ("emo_text", body.emo_text),
            body.emo_weight,
            body.emo_random,
        )
        field = fields.by_method(body.emo_control_method)
        return self.requests.build(
            body.text,
            [await self._voice(body.prompt_audio_id, "prompt_audio_id")],
            body.generation(),
            max_codes_field="max_mel_tokens" if "max_mel_tokens" in body.model_fields_set else None,
            emotion=await self.requests.emotion(fields, field, self._voice),
            for_worker=for_worker,
        )

    async def _voice(self, name: str, field: str) -> Voice:
        """Find a voice by the id of an upload or by name.

        Raises:
            UploadNotFound: the file of the id does not exist.
            VoiceUnknown: there is no voice of that name.
        """
        voice = await self.voices.find(name)
        if voice is None and is_upload_id(name):
            raise UploadNotFound(name)
        if voice is None:
            raise VoiceUnknown(name, ["the file_id of an upload", *(v.name for v in self.voices.all())], field)
        return voice


def _file_record(upload: Upload) -> FileRecord:
    return {
        "success": True,
        "file_id": upload.id,
        "filename": upload.filename,
        "size": upload.size,
        "format": upload.format,
        "sample_rate": upload.sample_rate,
        "duration": round(upload.duration_s, 6),
        "created_at": iso(upload.created_s),
        "expires_at": iso(upload.expires_s),
    }
