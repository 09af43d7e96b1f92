"""The workflow dialect: ``/v1/workflows``. A chain of tasks by name; wait for its end, or look how far it is.

Knows its own paths, fields and error shape; what a request does is the core's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from streaming_server import errors
from streaming_server.api.http import Dialect, ErrorShape, MalformedBody, check_text, parse_body
from streaming_server.api.operations import ApiRoute
from streaming_server.api.requests import emotion_vector
from streaming_server.api.tasks.schemas import iso
from streaming_server.api.workflows import schemas as operations
from streaming_server.api.workflows.schemas import (
    TAG,
    Accepted,
    ErrorCode,
    SpeechConfig,
    SpeechResult,
    Stage,
    Status,
    WorkflowBody,
    WorkflowError,
    WorkflowStatus,
)
from streaming_server.domain import Emotion, Generation, Granularity, SpeechRequest, Voice
from streaming_server.errors import (
    BlankText,
    EngineNotReady,
    FileOutside,
    InvalidRequest,
    SpeechServerError,
)
from streaming_server.jobs.file_store import Files
from streaming_server.jobs.inspection import QUESTIONS, SPEECH
from streaming_server.jobs.paths import workflow_key
from streaming_server.jobs.runner import SpeechJob
from streaming_server.jobs.service import Backlog
from streaming_server.jobs.store import UNFINISHED, Job, JobState
from streaming_server.settings import Settings
from streaming_server.speech.service import EngineState, SpeechService
from streaming_server.speech.voices import VoiceLibrary
from streaming_server.text import forbidden_character

_CODES: Mapping[int, ErrorCode] = {401: "UNAUTHORIZED", 404: "NOT_FOUND", 408: "TASK_TIMEOUT"}
_FAILURES: Mapping[str, tuple[int, ErrorCode]] = {
    errors.FileMissing.code: (404, "NOT_FOUND"),
    errors.VoiceFileMissing.code: (404, "NOT_FOUND"),
    errors.FileOutside.code: (400, "INVALID_INPUT"),
    errors.VoiceUnreadable.code: (400, "INVALID_INPUT"),
    errors.EngineNotReady.code: (503, "MODEL_NOT_READY"),
    errors.InsufficientMemory.code: (503, "INSUFFICIENT_MEMORY"),
}
"""By the code of the error that a task failed with."""
_EMOTION_ORDER = ("emotion_text", "emotion_vector", "emotion_reference")
_STATES: Mapping[JobState, str] = {
    JobState.BLOCKED: "pending",
    JobState.PENDING: "pending",
    JobState.RUNNING: "running",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "skipped",
}


def error_body(status: int, message: str, error: SpeechServerError | None) -> WorkflowError:
    """The dialect's shape, for a request that became no task."""
    code: ErrorCode = "INVALID_INPUT" if status < 500 else "PROCESSING_ERROR" if status != 503 else "GPU_UNAVAILABLE"
    if isinstance(error, EngineNotReady):
        code = "MODEL_NOT_READY"
    if isinstance(error, BlankText):
        message = "输入文本不能为空"
    if isinstance(error, MalformedBody):
        problem = error.problems[0]
        message = f"{'.'.join(str(part) for part in problem['loc'][1:]) or problem['loc'][0]}: {problem['msg']}"
    return _error(message, _CODES.get(status, code), None, None)


SHAPE = ErrorShape(error_body, WorkflowError)
SHAPES = dict.fromkeys(("/v1/workflows", "/api/v1/monitoring"), SHAPE)


@dataclass(frozen=True, slots=True)
class Planner:
    """What a body means: which tasks, saying what, into which file."""

    voices: VoiceLibrary
    files: Files
    root: Path
    longest_text: int

    async def plan(self, body: WorkflowBody) -> tuple[Sequence[str], SpeechJob | None]:
        """The chain, and what those of it say that speak.

        Raises:
            InvalidRequest: a field that cannot be used.
            FileMissing: a recording that is not there.
        """
        chain = body.workflow_config.workflow_chain
        for name in chain:
            if name != SPEECH and name not in QUESTIONS:
                known = ", ".join([SPEECH, *QUESTIONS])
                raise InvalidRequest(
                    f"workflow_chain: there is no task {name[:80]!r}; there are {known}", "workflow_chain"
                )
        return chain, await self.speech(body) if SPEECH in chain else None

    async def speech(self, body: WorkflowBody) -> SpeechJob:
        """What a body says, whatever its chain.

        Raises:
            InvalidRequest, FileMissing: as `plan`.
        """
        config = body.workflow_config.indextts_config
        if config is None:
            raise InvalidRequest(f"indextts_config is required where the chain has {SPEECH}", "indextts_config")
        if found := forbidden_character(body.video_path):
            raise InvalidRequest(f"video_path has {found[0]} at position {found[1]}", "video_path")
        text = check_text(config.text, self.longest_text)
        if emotion_text := (config.emotion_text or "").strip():
            check_text(emotion_text, self.longest_text, "emotion_text")
        output = await self._key(config.output_path, "output_path")
        if not output.lower().endswith(".wav"):
            raise InvalidRequest("output_path must end in .wav", "output_path")
        values = (emotion_text, config.emotion_vector, config.emotion_reference)
        given = [name for name, value in zip(_EMOTION_ORDER, values, strict=True) if value]
        emotion = None
        if given:
            reference = config.emotion_reference if given[0] == "emotion_reference" else None
            emotion = Emotion(
                await self._voice(reference, "emotion_reference") if reference else None,
                emotion_vector(config.emotion_vector or ()) if given[0] == "emotion_vector" else None,
                emotion_text or None,
                config.emotion_alpha,
                config.use_random,
            )
        request = SpeechRequest(
            text,
            await self._voice(config.reference_audio, "reference_audio"),
            Generation(max_text_tokens_per_sentence=config.max_text_tokens_per_segment),
            Granularity.SENTENCE,
            emotion=emotion,
        )
        memo = {
            "video_path": body.video_path,
            "output_path": config.output_path,
            "parameters": _parameters(config, given[1:]),
        }
        return SpeechJob(request, output, memo)

    async def _voice(self, name: str | None, field: str) -> Voice:
        if name is None or name == "default":
            return self.voices.get(0)
        if found := await self.voices.find(name):
            return found
        key = await self._key(name, field)
        await asyncio.to_thread(self.files.local, key)
        return Voice(name, Path(key))

    async def _key(self, path: str, field: str) -> str:
        try:
            key = workflow_key(path, self.root)
            await asyncio.to_thread(self.files.check, key)
        except FileOutside as error:
            raise InvalidRequest(f"{field}: {error}", field) from None
        return key


@dataclass(frozen=True, slots=True)
class WorkflowsDialect(Dialect):
    """The routes over one backlog."""

    service: SpeechService
    backlog: Backlog
    planner: Planner
    settings: Settings
    shapes: ClassVar = SHAPES

    def routes(self) -> list[BaseRoute]:
        return [
            ApiRoute("/v1/workflows", self.submit, TAG, operations.SUBMIT, methods=["POST"]),
            ApiRoute("/v1/workflows/status/{workflow_id}", self.status, TAG, operations.STATUS),
        ]

    async def submit(self, request: Request) -> Response:
        wait = request.query_params.get("wait", "true").lower()
        if wait not in {"true", "1", "false", "0"}:
            raise InvalidRequest("wait must be true or false", "wait", "query")
        chain, speech = await self.planner.plan(await parse_body(request, WorkflowBody))
        if not self.settings.celery_broker_url and self.service.state is not EngineState.READY:
            raise EngineNotReady  # with a broker the workers' engines count, and these may come later
        jobs = await self.backlog.submit_chain(chain, speech)
        workflow_id, task_id = str(jobs[0].workflow_id), jobs[-1].id
        if wait in {"false", "0"}:
            accepted: Accepted = {"status": "pending", "workflow_id": workflow_id, "task_id": task_id}
            return JSONResponse(accepted, 202)
        limit_s = self.settings.workflow_wait_s
        ended = await self.backlog.ended(workflow_id, limit_s, request.is_disconnected)
        if ended is None:
            message = f"the workflow has not ended within {limit_s:g} s; it goes on"
            return JSONResponse(_error(message, "TASK_TIMEOUT", task_id, workflow_id), 408)
        failed = next((job for job in ended if job.state is not JobState.COMPLETED), None)
        if failed is None:
            return JSONResponse(result_of(ended[-1]))
        status, code = failure_of(failed)
        return JSONResponse(_error(f"{failed.name}: {failed.message}", code, failed.id, workflow_id), status)

    async def status(self, request: Request) -> Response:
        return JSONResponse(_status(await self.backlog.chain(request.path_params["workflow_id"])))


def result_of(job: Job) -> Mapping[str, Any]:
    """What a completed task has to say."""
    made = json.loads(job.result or "{}")
    if job.name != SPEECH:
        return dict(made)
    speech = SpeechJob.from_json(job.payload)
    memo = speech.memo or {}
    result: SpeechResult = {
        "status": "success",
        "workflow_id": job.workflow_id,
        "task_id": job.id,
        "output_path": memo.get("output_path", speech.output),
        "duration": made["duration"],
        "sample_rate": made["sample_rate"],
        "text_length": len(speech.request.text),
        "processing_time": _processing_time(job),
        "model_info": made["model_info"],
        "parameters": memo.get("parameters", {}) | _reading(speech, made),
    }
    return result


def _reading(speech: SpeechJob, made: Mapping[str, Any]) -> dict[str, str]:
    """Who read the emotion's description: a classifier or a list of words."""
    emotion = speech.request.emotion
    reader = made.get("emotion_text_by")
    return {"emotion_text_by": reader} if reader and emotion and emotion.text else {}


def failure_of(job: Job) -> tuple[int, ErrorCode]:
    """HTTP status and code of a task that failed."""
    return _FAILURES.get(job.error_code or "", (500, "PROCESSING_ERROR"))


def _parameters(config: SpeechConfig, ignored: Sequence[str]) -> dict[str, Any]:
    names = ("reference_audio", "emotion_alpha", "emotion_vector", "use_random", "max_text_tokens_per_segment")
    return {name: getattr(config, name) for name in names} | ({"ignored": list(ignored)} if ignored else {})


def _status(jobs: Sequence[Job]) -> WorkflowStatus:
    failed = next((job for job in jobs if job.state in {JobState.FAILED, JobState.CANCELLED}), None)
    unfinished = next((job for job in jobs if job.state in UNFINISHED), None)
    current = failed or unfinished or jobs[-1]
    status: Status = "failed" if failed else "completed" if unfinished is None else "running"
    if not failed and unfinished is jobs[0] and unfinished.state is JobState.PENDING:
        status = "pending"
    times = [time for job in jobs for time in (job.created_s, job.started_s, job.ended_s) if time is not None]
    return {
        "workflow_id": str(current.workflow_id),
        "status": status,
        "current_stage": current.name,
        "progress": round(100 * sum(job.progress for job in jobs) / len(jobs), 1),
        "stages": [_stage(job) for job in jobs],
        "created_at": iso(jobs[0].created_s),
        "updated_at": iso(max(times)),
    }


def _stage(job: Job) -> Stage:
    output: dict[str, Any] = {}
    if job.state is JobState.COMPLETED:
        output = {"processing_time": _processing_time(job)}
    elif job.state is JobState.FAILED:
        output = {"error": job.message, "error_code": failure_of(job)[1]}
    started_at = iso(job.started_s) if job.started_s else None
    return {"name": job.name, "status": _STATES[job.state], "started_at": started_at, "output": output}


def _processing_time(job: Job) -> float:
    return round((job.ended_s or 0.0) - (job.started_s or 0.0), 3)


def _error(message: str, code: ErrorCode, task_id: str | None, workflow_id: str | None) -> WorkflowError:
    return {"status": "error", "error": message, "error_code": code, "task_id": task_id, "workflow_id": workflow_id}
