"""The jobs that were accepted, in SQL: what is to be done, whose it is just now, and what came of it.

A running job belongs to an owner who renews a lease; when the lease has run out, anybody may claim the job again. Every
method is one short transaction and blocks its thread. Knows no audio, and not what a payload means.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from streaming_server.core.database import Database, job_uploads, jobs, uploads
from streaming_server.errors import JobQueueFull, LeaseLost, UploadNotFound


class JobState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Job:
    """One row; times are UNIX seconds."""

    number: int
    """Counts up in the order of acceptance."""
    id: str
    state: JobState
    payload: str
    result: str | None
    message: str
    progress: float
    """0.0-1.0."""
    attempts: int
    """How often it was claimed."""
    owner: str | None
    lease_until_s: float | None
    created_s: float
    started_s: float | None
    ended_s: float | None


class JobStore:
    """All jobs of one database."""

    def __init__(self, database: Database, *, most_pending: int, lease_s: float) -> None:
        """
        Args:
            database: where they are.
            most_pending: beyond so many, `submit` refuses.
            lease_s: for how long a claim holds without a renewal.
        """
        self._database = database
        self._most_pending = most_pending
        self.lease_s = lease_s

    def submit(self, job_id: str, payload: str, needed_uploads: Collection[str], message: str) -> Job:
        """Accept a job; once this returns, it will be done.

        Raises:
            JobQueueFull: as many are pending as may.
            UploadNotFound: an upload that it needs is not there, or no longer.
            StorageFull: there is no space to remember it.
        """
        with self._database.write() as connection:
            if self._count(connection, jobs.c.state == JobState.PENDING) >= self._most_pending:
                raise JobQueueFull(self._most_pending)
            values = {
                "id": job_id,
                "state": JobState.PENDING,
                "payload": payload,
                "message": message,
                "progress": 0.0,
                "attempts": 0,
                "created_s": self._database.now(),
            }
            job = _job(connection.execute(jobs.insert().values(values).returning(jobs)).one())
            for upload in sorted(needed_uploads):
                # An update that changes nothing holds the row: nobody removes the upload before the job is there.
                there = sa.and_(uploads.c.id == upload, is_kept(self._database.now()))
                held = uploads.update().where(there).values(id=upload)
                if not connection.execute(held).rowcount:
                    raise UploadNotFound(upload)
                connection.execute(job_uploads.insert().values(job=job.number, upload=upload))
        return job

    def get(self, job_id: str) -> Job | None:
        with self._database.read() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
        return _job(row) if row else None

    def page(self, limit: int, offset: int = 0, states: Sequence[JobState] = ()) -> tuple[list[Job], int]:
        """The newest jobs first, and how many there are; only those in certain states where some are given."""
        chosen = jobs.c.state.in_(states) if states else sa.true()
        query = sa.select(jobs).where(chosen).order_by(jobs.c.number.desc()).limit(limit).offset(offset)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query)], self._count(connection, chosen)

    def counts(self) -> Mapping[str, int]:
        """How many jobs are in each state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with self._database.read() as connection:
            found = {str(state): int(count) for state, count in connection.execute(query)}
        return {state.value: found.get(state, 0) for state in JobState}

    def claim(self, owner: str) -> Job | None:
        """Take the job that has waited longest, or that its owner has left; None where there is none."""
        now = self._database.now()
        values: dict[str, Any] = {
            "state": JobState.RUNNING,
            "owner": owner,
            "lease_until_s": now + self.lease_s,
            "attempts": jobs.c.attempts + 1,
            "started_s": sa.func.coalesce(jobs.c.started_s, now),
            "progress": 0.0,
            "message": "running",
        }
        abandoned = sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_until_s < now)
        with self._database.write(durable=False) as connection:  # what a power cut forgets is claimed anew
            # Two looks into the index by state; one condition for both would read all jobs that have ended too.
            for claimable in (abandoned, jobs.c.state == JobState.PENDING):
                oldest = sa.select(jobs.c.number).where(claimable).order_by(jobs.c.number).limit(1)
                chosen = jobs.c.number == oldest.with_for_update(skip_locked=True).scalar_subquery()
                if row := connection.execute(jobs.update().where(chosen).values(values).returning(jobs)).one_or_none():
                    return _job(row)
        return None

    def renew(self, job: Job, progress: float) -> None:
        """Hold on to a claimed job, and say how far it is.

        Raises:
            LeaseLost: it was cancelled, deleted or taken over.
        """
        self._change(job, durable=False, progress=progress, lease_until_s=self._database.now() + self.lease_s)

    def release(self, job: Job, message: str) -> None:
        """Give a claimed job back: it is pending again, in its old place.

        Raises:
            LeaseLost: as `renew`.
        """
        self._change(job, **self._released(message))

    def release_all(self, owner: str) -> int:
        """Give back all that an owner held who is known to be gone; how many."""
        held = sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.owner == owner)
        values = self._released("interrupted")
        with self._database.write() as connection:
            return connection.execute(jobs.update().where(held).values(values)).rowcount

    def finish(self, job: Job, result: str, deliver: Callable[[], None] = lambda: None) -> None:
        """A claimed job is done.

        Args:
            job: as it was claimed.
            result: what came of it.
            deliver: puts the output into its place, within the transaction: whoever takes the job over or deletes it
                is before all of it or after.

        Raises:
            LeaseLost: as `renew`; nothing was delivered.
        """
        values = self._ended(state=JobState.COMPLETED, result=result, progress=1.0, message="completed")
        self._change(job, deliver, **values)

    def fail(self, job: Job, message: str) -> None:
        """A claimed job can't be done.

        Raises:
            LeaseLost: as `renew`.
        """
        self._change(job, **self._ended(state=JobState.FAILED, message=message))

    def cancel(self, job_id: str) -> Job | None:
        """End an unfinished job. Who runs it learns of it from the next `renew`. None where there is no such job."""
        unfinished = sa.and_(jobs.c.id == job_id, jobs.c.state.in_(UNFINISHED))
        values = self._ended(state=JobState.CANCELLED, message="cancelled")
        with self._database.write() as connection:
            connection.execute(jobs.update().where(unfinished).values(values))
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
        return _job(row) if row else None

    def delete(self, job_id: str) -> bool:
        """Forget a job, whatever it is at; whether there was one."""
        with self._database.write() as connection:
            return connection.execute(jobs.delete().where(jobs.c.id == job_id)).rowcount > 0

    def delete_ended(self, age_s: float) -> list[str]:
        """Forget jobs that ended so many seconds ago; their ids."""
        ended = jobs.c.ended_s <= self._database.now() - age_s
        with self._database.write() as connection:
            return list(connection.execute(jobs.delete().where(ended).returning(jobs.c.id)).scalars())

    def _count(self, connection: sa.Connection, condition: sa.ColumnElement[bool]) -> int:
        return connection.execute(sa.select(sa.func.count()).select_from(jobs).where(condition)).scalar_one()

    def _ended(self, **values: Any) -> dict[str, Any]:
        return {"ended_s": self._database.now(), "owner": None, "lease_until_s": None, **values}

    def _released(self, message: str) -> dict[str, Any]:
        return {"state": JobState.PENDING, "owner": None, "lease_until_s": None, "progress": 0.0, "message": message}

    def _change(
        self, job: Job, also: Callable[[], None] = lambda: None, *, durable: bool = True, **values: Any
    ) -> None:
        # The number of the attempt tells two claims of one owner apart; that of a deleted job may be given out again.
        own = sa.and_(
            jobs.c.id == job.id,
            jobs.c.state == JobState.RUNNING,
            jobs.c.owner == job.owner,
            jobs.c.attempts == job.attempts,
        )
        with self._database.write(durable=durable) as connection:
            if not connection.execute(jobs.update().where(own).values(values)).rowcount:
                raise LeaseLost(job.id)
            also()


def is_kept(now: sa.ColumnElement[float]) -> sa.ColumnElement[bool]:
    """Of an upload: its time is not over, or an unfinished job needs it."""
    needing = (
        sa.select(job_uploads.c.upload)
        .join(jobs, jobs.c.number == job_uploads.c.job)
        .where(job_uploads.c.upload == uploads.c.id, jobs.c.state.in_(UNFINISHED))
    )
    return sa.or_(uploads.c.expires_s >= now, needing.exists())


def _job(row: Any) -> Job:
    return Job(**(dict(row._mapping) | {"state": JobState(row.state)}))
