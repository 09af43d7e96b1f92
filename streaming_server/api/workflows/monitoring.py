"""The monitoring routes of the workflow dialect: locks, heartbeats and statistics of workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from streaming_server.api.http import Dialect
from streaming_server.api.operations import ApiRoute
from streaming_server.api.tasks.schemas import iso
from streaming_server.api.workflows import schemas as operations
from streaming_server.api.workflows.schemas import (
    MONITORING_TAG,
    Heartbeats,
    Lock,
    LockHealth,
    WorkflowStatistics,
)
from streaming_server.jobs.store import JobState
from streaming_server.jobs.threads import StorageThreads
from streaming_server.jobs.worker_registry import Activity, Statistics, Worker, WorkerRegistry
from streaming_server.speech.slot import Slot

_SHOWN = 100
"""Maximum number of tasks in a list."""
_MIN_SUCCESS_RATE, _MAX_TIMEOUT_RATE = 0.8, 0.2


@dataclass(frozen=True, slots=True)
class Monitoring(Dialect):
    """The monitoring routes of one database."""

    registry: WorkerRegistry
    threads: StorageThreads
    own_id: str
    slot: Slot

    def routes(self) -> list[BaseRoute]:
        base = "/api/v1/monitoring"
        return [
            ApiRoute(f"{base}/gpu-lock/health", self.locks, MONITORING_TAG, operations.LOCKS),
            ApiRoute(f"{base}/heartbeat/all", self.heartbeats, MONITORING_TAG, operations.HEARTBEATS),
            ApiRoute(f"{base}/statistics", self.statistics, MONITORING_TAG, operations.STATISTICS),
        ]

    async def locks(self, request: Request) -> Response:
        workers, claims, numbers = await self.threads.run(
            lambda: (self.registry.alive(), self.registry.claims(_SHOWN), self.registry.statistics())
        )
        locks = [self._lock(index, worker, claims.latest) for index, worker in enumerate(workers)]
        is_healthy = (
            _share(numbers.completed, numbers.completed + numbers.failed, 1.0) >= _MIN_SUCCESS_RATE
            and _share(numbers.retried, numbers.total, 0.0) <= _MAX_TIMEOUT_RATE
        )
        body: LockHealth = {
            "status": "healthy" if is_healthy else "degraded",
            "total_locks": len(locks),
            "active_locks": sum(lock["locked"] for lock in locks),
            "locks": locks,
            "health_thresholds": {"min_success_rate": _MIN_SUCCESS_RATE, "max_timeout_rate": _MAX_TIMEOUT_RATE},
        }
        return JSONResponse(body)

    async def heartbeats(self, request: Request) -> Response:
        claims = await self.threads.run(self.registry.claims, _SHOWN)
        body: Heartbeats = {
            "total_tasks": claims.total,
            "active_tasks": claims.running,
            "tasks": [
                {
                    "task_id": task.job_id,
                    "task_name": task.job_name,
                    "worker_id": task.worker_id,
                    "last_heartbeat": iso(task.heartbeat_s),
                    "status": task.state,
                }
                for task in claims.latest
            ],
        }
        return JSONResponse(body)

    async def statistics(self, request: Request) -> Response:
        workers, numbers = await self.threads.run(lambda: (self.registry.alive(), self.registry.statistics()))
        active = sum(self._is_busy(worker) for worker in workers)
        return JSONResponse(_statistics(numbers, workers, active))

    def _lock(self, index: int, worker: Worker, activity: Sequence[Activity]) -> Lock:
        running = [task for task in activity if task.worker_id == worker.id and task.state is JobState.RUNNING]
        is_own = worker.id == self.own_id
        entered_s = self.slot.last_entered_s if is_own else worker.entered_s
        return {
            "lock_key": f"gpu_lock:{index}",
            "locked": self._is_busy(worker),
            "last_acquired": iso(entered_s) if entered_s else None,
            "expires_at": iso(running[0].heartbeat_s + self.registry.lease_s) if running else None,
        }

    def _is_busy(self, worker: Worker) -> bool:
        # Heartbeats are some seconds old; the state of this process is read directly.
        return self.slot.status().holder is not None if worker.id == self.own_id else worker.is_busy


def _statistics(numbers: Statistics, workers: list[Worker], active: int) -> WorkflowStatistics:
    devices: list[Mapping[str, float | None]] = [worker.device for worker in workers if worker.device]
    return {
        "system": {
            "total_tasks": numbers.total,
            "successful_tasks": numbers.completed,
            "failed_tasks": numbers.failed,
            "success_rate": round(_share(numbers.completed, numbers.completed + numbers.failed, 1.0), 4),
            "avg_processing_time": round(numbers.average_s, 3),
        },
        "gpu": {
            "utilization": _mean([device["utilization"] for device in devices]),
            "memory_used": _gigabytes([device["memory_used_mib"] for device in devices]),
            "memory_total": _gigabytes([device["memory_total_mib"] for device in devices]),
        },
        "workers": {"total": len(workers), "active": active, "idle": len(workers) - active},
    }


def _share(part: int, whole: int, of_nothing: float) -> float:
    return part / whole if whole else of_nothing


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 3) if known else None


def _gigabytes(mebibytes: list[float | None]) -> str | None:
    known = [value for value in mebibytes if value is not None]
    return f"{sum(known) / 1024:.1f}GB" if known else None
