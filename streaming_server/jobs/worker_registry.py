"""The registry of workers by heartbeat, and the jobs whose messages were lost by the broker.

Every method is one short, blocking transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from streaming_server.jobs.database import Database, jobs, workers
from streaming_server.jobs.store import JobState, JobStore, is_due

_MISSED_LEASES = 2
"""Number of leases without a heartbeat after which a worker counts as dead."""
_UNTAKEN_S = 2.0
"""Time after which a message that no idle worker has taken counts as lost."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process with an engine and a slot; times are UNIX seconds."""

    id: str
    """``worker@<host>-…``."""
    entered_s: float | None
    """Time at which its slot was last entered."""
    is_busy: bool
    """Whether its slot was held at the last heartbeat, or it owns a running job."""
    device: Mapping[str, Any]
    """Its GPU at the last heartbeat."""


@dataclass(frozen=True, slots=True)
class Activity:
    """A job that a worker runs or ran."""

    job_id: str
    job_name: str
    worker_id: str
    heartbeat_s: float
    state: JobState


@dataclass(frozen=True, slots=True)
class Claims:
    """The jobs that were claimed."""

    total: int
    running: int
    latest: Sequence[Activity]
    """Running ones first, then the most recently accepted ones, up to a limit."""


@dataclass(frozen=True, slots=True)
class Statistics:
    total: int
    completed: int
    failed: int
    retried: int
    """Number of jobs of which an attempt failed."""
    average_s: float
    """Mean duration of the completed jobs."""


class WorkerRegistry:
    """The workers of one database."""

    def __init__(self, database: Database, store: JobStore) -> None:
        self._database = database
        self._store = store
        self.lease_s = store.lease_s

    def beat(self, worker_id: str, entered_s: float | None, device: Mapping[str, Any], *, is_busy: bool) -> None:
        """Record the heartbeat of a worker."""
        state = {
            "seen_s": self._database.now(),
            "entered_s": entered_s,
            "is_busy": is_busy,
            "device": json.dumps(device),
        }
        with self._database.write() as connection:
            connection.execute(self._database.insert_if_new(workers, {"id": worker_id, **state}))
            connection.execute(workers.update().where(workers.c.id == worker_id).values(state))
            stale = workers.c.seen_s < self._database.now() - 10 * self.lease_s
            connection.execute(workers.delete().where(stale))

    def leave(self, worker_id: str) -> None:
        """Remove a worker that shuts down."""
        with self._database.write() as connection:
            connection.execute(workers.delete().where(workers.c.id == worker_id))

    def alive(self) -> list[Worker]:
        """Return the workers with a recent heartbeat, by name."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(workers).where(self._is_alive()).order_by(workers.c.id)).all()
            owners = sa.select(jobs.c.owner).where(jobs.c.state == JobState.RUNNING)
            busy = set(connection.execute(owners).scalars())
        return [Worker(row.id, row.entered_s, row.is_busy or row.id in busy, json.loads(row.device)) for row in rows]

    def claims(self, limit: int) -> Claims:
        """Return the numbers of the claimed jobs, and the latest of them."""
        is_running = jobs.c.state == JobState.RUNNING
        numbers = sa.select(sa.func.count(), sa.func.count(sa.case((is_running, 1))))
        columns = (jobs.c.id, jobs.c.name, jobs.c.owner, jobs.c.state, jobs.c.ended_s, jobs.c.lease_until_s)
        latest = sa.select(*columns).order_by(sa.case((is_running, 0), else_=1), jobs.c.number.desc()).limit(limit)
        is_claimed = jobs.c.owner.is_not(None)
        with self._database.read() as connection:
            total, active = connection.execute(numbers.where(is_claimed)).one()
            found = [
                Activity(
                    row.id,
                    row.name,
                    row.owner,
                    row.ended_s or (row.lease_until_s or 0.0) - self.lease_s,
                    JobState(row.state),
                )
                for row in connection.execute(latest.where(is_claimed))
            ]
        return Claims(total, active, found)

    def statistics(self) -> Statistics:
        """Return statistics of the stored jobs."""

        def count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
            return sa.func.count(sa.case((condition, 1)))

        completed = jobs.c.state == JobState.COMPLETED
        query = sa.select(
            sa.func.count(),
            count(completed),
            count(jobs.c.state == JobState.FAILED),
            count(jobs.c.failures > 0),
            sa.func.avg(sa.case((completed, jobs.c.ended_s - jobs.c.started_s))),
        )
        with self._database.read() as connection:
            total, done, failed, retried, average = connection.execute(query.select_from(jobs)).one()
        return Statistics(total, done, failed, retried, average or 0.0)

    def take_unsent(self) -> Sequence[tuple[str, str, str | None]]:
        """Return id, name and workflow of the jobs whose message must be sent again, and mark them as sent.

        These are the jobs with an expired lease and, up to the number of idle workers, jobs that have waited for a
        while: if their messages had arrived, those workers would not be idle.
        """
        now = self._database.now()
        columns = (jobs.c.id, jobs.c.name, jobs.c.workflow_id)
        sent = {"sent_s": now}
        untaken = sa.and_(is_due(now), sa.func.coalesce(jobs.c.sent_s, 0.0) < now - _UNTAKEN_S)
        with self._database.write() as connection:
            requeued = [row.number for row in self._store.requeue_expired(connection)]
            ready = sa.and_(jobs.c.number.in_(requeued), is_due(now))
            found = list(connection.execute(jobs.update().where(ready).values(sent).returning(*columns)))
            running = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == JobState.RUNNING)
            alive = sa.select(sa.func.count()).select_from(workers).where(self._is_alive())
            idle = connection.execute(alive).scalar_one() - connection.execute(running).scalar_one() - len(found)
            if idle > 0:
                oldest = sa.select(jobs.c.number).where(untaken).order_by(jobs.c.number).limit(idle)
                chosen = jobs.c.number.in_(oldest.with_for_update(skip_locked=True).scalar_subquery())
                found += list(connection.execute(jobs.update().where(chosen).values(sent).returning(*columns)))
        return [(row.id, row.name, row.workflow_id) for row in found]

    def _is_alive(self) -> sa.ColumnElement[bool]:
        return workers.c.seen_s >= self._database.now() - _MISSED_LEASES * self.lease_s
