"""Who runs jobs, as they say of themselves, and the jobs of which a broker has lost sight.

Every method is one short transaction and blocks its thread. Knows no broker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from streaming_server.jobs.database import Database, jobs, workers
from streaming_server.jobs.store import JobState

_SILENT_LEASES = 2
"""A worker that has said nothing for so many leases is gone."""
_UNSEEN_S = 2.0
"""A worker that is idle takes what it is told of sooner than that."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process with an engine and a slot; times are UNIX seconds."""

    id: str
    """``worker@<host>-…``."""
    seen_s: float
    """When it last spoke."""
    entered_s: float | None
    """When its slot was last entered."""
    is_busy: bool
    """Whether its slot was held, or a job is its own."""
    device: Mapping[str, Any]
    """What it said of its GPU."""


@dataclass(frozen=True, slots=True)
class Activity:
    """A job that some worker has or had in hand."""

    job_id: str
    job_name: str
    worker_id: str
    heartbeat_s: float
    state: JobState


@dataclass(frozen=True, slots=True)
class Statistics:
    total: int
    completed: int
    failed: int
    retried: int
    """Jobs that were claimed more than once."""
    average_s: float
    """Duration of those that were completed."""


class Workforce:
    """The workers of one database."""

    def __init__(self, database: Database, lease_s: float) -> None:
        self._database = database
        self.lease_s = lease_s

    def beat(self, worker_id: str, entered_s: float | None, device: Mapping[str, Any], *, is_busy: bool) -> None:
        """A worker lives."""
        state = {
            "seen_s": self._database.now(),
            "entered_s": entered_s,
            "is_busy": is_busy,
            "device": json.dumps(device),
        }
        with self._database.write() as connection:
            connection.execute(self._database.insert_if_new(workers, {"id": worker_id, **state}))
            connection.execute(workers.update().where(workers.c.id == worker_id).values(state))
            silent = workers.c.seen_s < self._database.now() - 10 * self.lease_s
            connection.execute(workers.delete().where(silent))

    def leave(self, worker_id: str) -> None:
        """A worker ends."""
        with self._database.write() as connection:
            connection.execute(workers.delete().where(workers.c.id == worker_id))

    def alive(self) -> list[Worker]:
        """Those who have spoken lately, by name."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(workers).where(self._is_alive()).order_by(workers.c.id)).all()
            owners = sa.select(jobs.c.owner).where(jobs.c.state == JobState.RUNNING)
            busy = set(connection.execute(owners).scalars())
        return [
            Worker(row.id, row.seen_s, row.entered_s, row.is_busy or row.id in busy, json.loads(row.device))
            for row in rows
        ]

    def activity(self, limit: int) -> list[Activity]:
        """The latest jobs that were claimed."""
        claimed = (
            sa.select(jobs)
            .where(jobs.c.owner.is_not(None))
            .order_by(sa.case((jobs.c.state == JobState.RUNNING, 0), else_=1), jobs.c.number.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [
                Activity(
                    row.id,
                    row.name,
                    row.owner,
                    row.ended_s or (row.lease_until_s or 0.0) - self.lease_s,
                    JobState(row.state),
                )
                for row in connection.execute(claimed)
            ]

    def statistics(self) -> Statistics:
        """Of the jobs that are kept."""

        def count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
            return sa.func.count(sa.case((condition, 1)))

        completed = jobs.c.state == JobState.COMPLETED
        query = sa.select(
            sa.func.count(),
            count(completed),
            count(jobs.c.state == JobState.FAILED),
            count(jobs.c.attempts > 1),
            sa.func.avg(sa.case((completed, jobs.c.ended_s - jobs.c.started_s))),
        )
        with self._database.read() as connection:
            total, done, failed, retried, average = connection.execute(query.select_from(jobs)).one()
        return Statistics(total, done, failed, retried, average or 0.0)

    def forgotten(self) -> Sequence[tuple[str, str, str | None]]:
        """Id, name and workflow of the jobs that a worker must be told of once more.

        Those whose owner is gone, and as many as there are idle workers of those that nobody took for a while: had
        they been told of them, they would not be idle.
        """
        now = self._database.now()
        columns = (jobs.c.id, jobs.c.name, jobs.c.workflow_id)
        told = {"sent_s": now}
        left = sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_until_s < now)
        untaken = sa.and_(jobs.c.state == JobState.PENDING, sa.func.coalesce(jobs.c.sent_s, 0.0) < now - _UNSEEN_S)
        with self._database.write() as connection:
            released = {**told, "state": JobState.PENDING, "owner": None, "lease_until_s": None, "progress": 0.0}
            found = list(connection.execute(jobs.update().where(left).values(released).returning(*columns)))
            running = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == JobState.RUNNING)
            alive = sa.select(sa.func.count()).select_from(workers).where(self._is_alive())
            idle = connection.execute(alive).scalar_one() - connection.execute(running).scalar_one() - len(found)
            if idle > 0:
                oldest = sa.select(jobs.c.number).where(untaken).order_by(jobs.c.number).limit(idle)
                chosen = jobs.c.number.in_(oldest.with_for_update(skip_locked=True).scalar_subquery())
                found += list(connection.execute(jobs.update().where(chosen).values(told).returning(*columns)))
        return [(row.id, row.name, row.workflow_id) for row in found]

    def _is_alive(self) -> sa.ColumnElement[bool]:
        return workers.c.seen_s >= self._database.now() - _SILENT_LEASES * self.lease_s
