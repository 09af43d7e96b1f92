"""The messages of the workflow dialect, shared by HTTP and Celery: bodies to plans, jobs to results."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streaming_server import errors
from streaming_server.api.http import ErrorShape, MalformedBody, check_text, status_of, validated
from streaming_server.api.requests import EmotionFields, emotion_vector
from streaming_server.api.workflows.schemas import (
    ErrorCode,
    SpeechConfig,
    SpeechResult,
    WorkflowBody,
    WorkflowError,
)
from streaming_server.domain import Capability, SpeechRequest
from streaming_server.errors import BlankText, InvalidRequest, SpeechServerError, StorageUnavailable
from streaming_server.jobs.chains import OrderPlanner, Plan, SpeechOrder
from streaming_server.jobs.inspection import CAPABILITIES, DEFAULT, QUESTIONS, SPEECH
from streaming_server.jobs.runner import SpeechJob
from streaming_server.jobs.store import Job
from streaming_server.jobs.worker import Worker
from streaming_server.speech.markup import check_pauses
from streaming_server.speech.service import EngineState
from streaming_server.text import forbidden_character

_BY_STATUS: Mapping[int, ErrorCode] = {
    401: "UNAUTHORIZED",
    404: "NOT_FOUND",
    408: "TASK_TIMEOUT",
    503: "GPU_UNAVAILABLE",
    507: "INSUFFICIENT_STORAGE",
}
_BY_CODE: Mapping[str, tuple[int, ErrorCode]] = {
    errors.InvalidRequest.code: (400, "INVALID_INPUT"),
    errors.VoiceUnknown.code: (400, "INVALID_INPUT"),
    errors.FileMissing.code: (404, "NOT_FOUND"),
    errors.VoiceFileMissing.code: (404, "NOT_FOUND"),
    errors.FileOutside.code: (400, "INVALID_INPUT"),
    errors.VoiceUnreadable.code: (400, "INVALID_INPUT"),
    errors.EngineNotReady.code: (503, "MODEL_NOT_READY"),
    errors.DeviceFailed.code: (503, "GPU_UNAVAILABLE"),
    errors.ShuttingDown.code: (503, "MODEL_NOT_READY"),
    errors.JobQueueFull.code: (503, "QUEUE_FULL"),
    errors.QueueFull.code: (503, "QUEUE_FULL"),
    errors.InsufficientMemory.code: (503, "INSUFFICIENT_MEMORY"),
    errors.StorageFull.code: (507, "INSUFFICIENT_STORAGE"),
    errors.StorageUnavailable.code: (507, "INSUFFICIENT_STORAGE"),
}
"""HTTP status and error code of a failed task, by the code of the exception."""
_EMOTION_FIELDS = {
    Capability.EMOTION_REFERENCE: "emotion_reference",
    Capability.EMOTION_VECTOR: "emotion_vector",
    Capability.EMOTION_TEXT: "emotion_text",
    Capability.EMOTION_RANDOM: "use_random",
}
"""Fields that require a capability of the engine."""
_PRESETS = {
    DEFAULT: ("Default Voice", "默认语音"),
    "male_01": ("Male Voice", "男声"),
    "female_01": ("Female Voice", "女声"),
}


def error_body(status: int, message: str, error: SpeechServerError | None) -> WorkflowError:
    """Return the error of a request that was not accepted, in the dialect's shape."""
    code = _BY_CODE[error.code][1] if error and error.code in _BY_CODE else _BY_STATUS.get(status)
    if isinstance(error, StorageUnavailable):
        code = "QUEUE_FULL"  # retryable, unlike the failure of a task that waited for the storage in vain
    if isinstance(error, BlankText):
        message = "输入文本不能为空"
    if isinstance(error, MalformedBody):
        problem = error.problems[0]
        message = f"{'.'.join(str(part) for part in problem['loc'][1:]) or problem['loc'][0]}: {problem['msg']}"
    return error_of(message, code or ("INVALID_INPUT" if status < 500 else "PROCESSING_ERROR"))


SHAPE = ErrorShape(error_body, WorkflowError)


def error_of(
    message: str, code: ErrorCode, task_id: str | None = None, workflow_id: str | None = None
) -> WorkflowError:
    return {"status": "error", "error": message, "error_code": code, "task_id": task_id, "workflow_id": workflow_id}


def failure_of(job: Job) -> tuple[int, ErrorCode]:
    """Return the HTTP status and the error code of a failed task."""
    return _BY_CODE.get(job.error_code or "", (500, "PROCESSING_ERROR"))


def processing_time(job: Job) -> float:
    """Return the seconds for which a task ran or has been running."""
    return round(max(0.0, (job.ended_s or time.time()) - (job.started_s or 0.0)), 3)


@dataclass(frozen=True, slots=True)
class Messages:
    """Implements `WorkflowMessages`, and plans complete bodies."""

    planner: OrderPlanner
    max_text_characters: int

    @classmethod
    def for_worker(cls, worker: Worker, max_characters: int) -> Messages:
        """Create the messages for a worker's voices and files."""
        storage = worker.storage
        return cls(OrderPlanner(worker.presets, storage.files, storage.workflow_roots), max_characters)

    async def plan(self, body: WorkflowBody) -> Plan:
        """Return the plan of a body.

        Raises:
            InvalidRequest: a field is invalid.
            FileMissing: a recording does not exist.
        """
        chain = body.workflow_config.workflow_chain
        for name in chain:
            if name != SPEECH and name not in QUESTIONS:
                known = ", ".join([SPEECH, *QUESTIONS])
                raise InvalidRequest(f"workflow_chain: unknown task {name[:80]!r}; known: {known}", "workflow_chain")
        return Plan(chain, await self._speech(body) if SPEECH in chain else None)

    async def parse(self, message: object) -> SpeechJob:
        """Return the payload of ``generate_speech`` in a message of another program."""
        if isinstance(message, Mapping) and isinstance(config := message.get("workflow_config"), Mapping):
            message = {**message, "workflow_config": {**config, "workflow_chain": [SPEECH]}}
        return await self._speech(validated(WorkflowBody, message, "body"))

    def result(self, job: Job) -> Mapping[str, Any]:
        """Return the result of a completed task."""
        made = json.loads(job.result or "{}")
        return _ANSWERS[job.name](made) if job.name in _ANSWERS else _speech_result(job, made)

    def failure(self, job: Job) -> WorkflowError:
        return error_of(job.message, failure_of(job)[1], job.id, job.workflow_id)

    def refusal(self, error: Exception) -> WorkflowError:
        known = error if isinstance(error, SpeechServerError) else None
        return error_body(status_of(known, SHAPE) if known else 500, str(error), known)

    async def _speech(self, body: WorkflowBody) -> SpeechJob:
        config = body.workflow_config.indextts_config
        if config is None:
            raise InvalidRequest(f"indextts_config is required if the chain contains {SPEECH}", "indextts_config")
        if found := forbidden_character(body.video_path):
            raise InvalidRequest(f"video_path has {found[0]} at position {found[1]}", "video_path")
        given = EmotionFields(
            ("emotion_reference", config.emotion_reference),
            ("emotion_vector", config.emotion_vector),
            ("emotion_text", config.emotion_text),
        ).given()
        used = given[0] if given else None
        emotion_text = (config.emotion_text or "").strip() if used == "emotion_text" else None
        if emotion_text:
            check_text(emotion_text, self.max_text_characters, "emotion_text")
        check_text(config.text, self.max_text_characters)
        check_pauses(config.text, "text")
        order = SpeechOrder(
            config.text,
            config.output_path,
            config.reference_audio,
            config.max_text_tokens_per_segment,
            config.emotion_reference if used == "emotion_reference" else None,
            emotion_vector(config.emotion_vector or ()) if used == "emotion_vector" else None,
            emotion_text,
            config.emotion_alpha,
            config.use_random,
        )
        memo = {
            "video_path": body.video_path,
            "output_path": config.output_path,
            "parameters": _parameters(config),
            "ignored": given[1:],
        }
        return await self.planner.speech(order, memo)


def _parameters(config: SpeechConfig) -> dict[str, Any]:
    names = ("reference_audio", "emotion_alpha", "emotion_vector", "use_random", "max_text_tokens_per_segment")
    return {name: getattr(config, name) for name in names}


def _speech_result(job: Job, made: Mapping[str, Any]) -> SpeechResult:
    speech = SpeechJob.from_json(job.payload)
    memo = speech.memo or {}
    return {
        "status": "success",
        "workflow_id": job.workflow_id,
        "task_id": job.id,
        "output_path": memo.get("output_path", speech.output),
        "duration": made["duration"],
        "sample_rate": made["sample_rate"],
        "text_length": len(speech.request.text),
        "processing_time": processing_time(job),
        "model_info": made["model_info"],
        "parameters": memo.get("parameters", {}) | _emotion_notes(speech.request, memo.get("ignored", ()), made),
    }


def _emotion_notes(request: SpeechRequest, unused: Sequence[str], made: Mapping[str, Any]) -> dict[str, Any]:
    """Return what interpreted the description of the emotion, and which fields were ignored."""
    notes: dict[str, Any] = {}
    ignored = [*unused, *(_EMOTION_FIELDS[name] for name in made.get("emotion_ignored", ()))]
    if ignored:
        notes["ignored"] = ignored
    reader = made.get("emotion_text_by")
    if reader and request.emotion and request.emotion.text and "emotion_text" not in ignored:
        notes["emotion_text_by"] = reader
    return notes


def _health(made: Mapping[str, Any]) -> dict[str, Any]:
    is_ready = made["engine_state"] == EngineState.READY
    gpus = made["gpus"]
    return {
        "status": "healthy" if is_ready else "unhealthy",
        "service": "indextts_service",
        "gpu": {"available": bool(gpus), "count": len(gpus), "name": gpus[0] if gpus else None},
        "model": made["engine_state"],
        "gpu_lock": "locked" if made["slot_is_held"] else "available",
    }


def _model_info(made: Mapping[str, Any]) -> dict[str, Any]:
    capabilities = {name.value: name in made["capabilities"] for name in CAPABILITIES}
    return {
        "status": "success",
        "model_info": {
            **made["model"],
            "model_path": made["model_path"],
            "status": made["engine_state"],
            # A job's file is available only after the job is complete.
            "capabilities": {**capabilities, "real_time": False},
        },
    }


def _presets(made: Mapping[str, Any]) -> dict[str, Any]:
    presets = {
        preset["name"]: {
            "name": _PRESETS.get(preset["name"], (preset["name"], ""))[0],
            "description": _PRESETS.get(preset["name"], ("", preset["file"]))[1],
            "language": _language(preset.get("languages", ())),  # results of an earlier version have none
            "gender": preset["gender"],
        }
        for preset in made["presets"]
    }
    return {"status": "success", "presets": presets, "total_count": len(presets)}


def _language(languages: Sequence[str]) -> str:
    """The language of a voice; ``multi`` where it is unknown or one of several."""
    return languages[0] if len(languages) == 1 else "multi"


_ANSWERS = {
    "indextts.health_check": _health,
    "indextts.get_model_info": _model_info,
    "indextts.list_voice_presets": _presets,
}
"""Formats the answers of the information tasks, by task name."""
