"""The workflow dialect: ``/v1/workflows`` runs a chain of tasks and reports its status."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from streaming_server.api.http import Dialect, parse_body, status_of
from streaming_server.api.operations import ApiRoute
from streaming_server.api.record import RequestRecord
from streaming_server.api.tasks.schemas import iso
from streaming_server.api.workflows import schemas as operations
from streaming_server.api.workflows.messages import SHAPE, Messages, error_of, failure_of, processing_time
from streaming_server.api.workflows.schemas import (
    TAG,
    Accepted,
    Stage,
    Status,
    WorkflowBody,
    WorkflowStatus,
)
from streaming_server.errors import EngineNotReady, InvalidRequest, ShuttingDown, SpeechServerError
from streaming_server.jobs.service import JobService
from streaming_server.jobs.store import UNFINISHED, Job, JobState
from streaming_server.settings import Settings
from streaming_server.speech.service import EngineState, SpeechService

_STATES: Mapping[JobState, str] = {
    JobState.BLOCKED: "pending",
    JobState.PENDING: "pending",
    JobState.RUNNING: "running",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "skipped",
}
SHAPES = dict.fromkeys(("/v1/workflows", "/api/v1/monitoring"), SHAPE)


@dataclass(frozen=True, slots=True)
class WorkflowsDialect(Dialect):
    """The workflow routes of one service."""

    service: SpeechService
    jobs: JobService
    messages: Messages
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
        plan = await self.messages.plan(await parse_body(request, WorkflowBody))
        if not self.settings.celery_broker_url and self.service.state is not EngineState.READY:
            raise EngineNotReady  # with a broker, the workers have the engines and may start later
        jobs = await self.jobs.submit_chain(plan)
        workflow_id, task_id = str(jobs[0].workflow_id), jobs[-1].id
        if wait in {"false", "0"}:
            accepted: Accepted = {"status": "pending", "workflow_id": workflow_id, "task_id": task_id}
            return JSONResponse(accepted, 202)
        limit_s = self.settings.workflow_wait_s
        try:
            ended = await self.jobs.ended(workflow_id, limit_s, request.is_disconnected)
        except SpeechServerError as error:  # such as a timeout: the body was accepted, so the error has its ids
            refusal = {**self.messages.refusal(error), "task_id": task_id, "workflow_id": workflow_id}
            return JSONResponse(refusal, status_of(error, SHAPE))
        except asyncio.CancelledError:  # SHUTDOWN_TIMEOUT_S has elapsed; no Retry-After, because the workflow is stored
            RequestRecord.of(request.scope).outcome = ShuttingDown.code
            message = "the server is shutting down; the workflow continues after the restart"
            return JSONResponse(error_of(message, "MODEL_NOT_READY", task_id, workflow_id), 503)
        if ended is None:
            message = f"the workflow has not ended within {limit_s:g} s; it goes on"
            return JSONResponse(error_of(message, "TASK_TIMEOUT", task_id, workflow_id), 408)
        failed = next((job for job in ended if job.state is not JobState.COMPLETED), None)
        if failed is None:
            return JSONResponse(self.messages.result(ended[-1]))
        status, code = failure_of(failed)
        return JSONResponse(error_of(f"{failed.name}: {failed.message}", code, failed.id, workflow_id), status)

    async def status(self, request: Request) -> Response:
        return JSONResponse(_status(await self.jobs.chain(request.path_params["workflow_id"])))


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
        "progress": int(100 * sum(job.progress for job in jobs) / len(jobs)),
        "stages": [_stage(job) for job in jobs],
        "created_at": iso(jobs[0].created_s),
        "updated_at": iso(max(times)),
    }


def _stage(job: Job) -> Stage:
    output: dict[str, Any] = {}
    if job.state in {JobState.COMPLETED, JobState.RUNNING}:
        output = {"processing_time": processing_time(job)}
    elif job.state is JobState.PENDING and job.attempts:
        output = {"message": job.message}
    elif job.state is JobState.FAILED:
        output = {"error": job.message, "error_code": failure_of(job)[1]}
    started_at = iso(job.started_s) if job.started_s else None
    return {"name": job.name, "status": _STATES[job.state], "started_at": started_at, "output": output}
