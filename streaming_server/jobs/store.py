"""The jobs that were accepted, in SQL: what is to be done, whose it is just now, and what came of it.

A running job belongs to an owner who renews a lease; when the lease has run out, anybody may claim the job again. The
jobs of a workflow run one after another. Every method is one short transaction and blocks its thread. Knows no audio,
and not what a payload means.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from streaming_server.errors import JobQueueFull, LeaseLost, UploadNotFound
from streaming_server.jobs.database import Database, job_uploads, jobs, uploads


class JobState(StrEnum):
    BLOCKED = "blocked"
    """Of a workflow, behind a job that is not completed yet."""
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = (JobState.BLOCKED, JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is to be accepted."""

    id: str
    name: str
    """What kind of job."""
    payload: str
    uploads: Collection[str] = ()
    """Ids of the uploads that it needs."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row; times are UNIX seconds."""

    number: int
    """Counts up in the order of acceptance."""
    id: str
    name: str
    workflow_id: str | None
    position: int
    """Place in the workflow."""
    state: JobState
    payload: str
    result: str | None
    message: str
    error_code: str | None
    progress: float
    """0.0-1.0."""
    attempts: int
    """How often it was claimed."""
    owner: str | None
    """Who runs it, or ran it last."""
    lease_until_s: float | None
    created_s: float
    sent_s: float | None
    """When a worker was last told of it."""
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

    def submit(self, chain: Sequence[NewJob], workflow_id: str | None = None) -> list[Job]:
        """Accept jobs that are done one after another; once this returns, they will be.

        Raises:
            JobQueueFull: as many are pending as may.
            UploadNotFound: an upload that they need is not there, or no longer.
            StorageFull: there is no space to remember them.
        """
        accepted = []
        with self._database.write() as connection:
            if _count(connection, jobs.c.state == JobState.PENDING) >= self._most_pending:
                raise JobQueueFull(self._most_pending)
            for position, new in enumerate(chain):
                values = {
                    "id": new.id,
                    "name": new.name,
                    "workflow_id": workflow_id,
                    "position": position,
                    "state": JobState.BLOCKED if position else JobState.PENDING,
                    "payload": new.payload,
                    "message": "accepted",
                    "progress": 0.0,
                    "attempts": 0,
                    "created_s": self._database.now(),
                    "sent_s": self._database.now(),
                }
                accepted.append(_job(connection.execute(jobs.insert().values(values).returning(jobs)).one()))
                self._hold(connection, accepted[-1].number, new.uploads)
        return accepted

    def get(self, job_id: str) -> Job | None:
        with self._database.read() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
        return _job(row) if row else None

    def chain(self, workflow_id: str) -> list[Job]:
        """The jobs of a workflow, in their order; empty where there is none of that id."""
        query = sa.select(jobs).where(jobs.c.workflow_id == workflow_id).order_by(jobs.c.number)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def page(self, limit: int, offset: int = 0, states: Sequence[JobState] = ()) -> tuple[list[Job], int]:
        """The newest jobs of no workflow first, and how many there are; only those in certain states where some are
        given."""
        chosen = sa.and_(jobs.c.workflow_id.is_(None), jobs.c.state.in_(states) if states else sa.true())
        query = sa.select(jobs).where(chosen).order_by(jobs.c.number.desc()).limit(limit).offset(offset)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query)], _count(connection, chosen)

    def counts(self) -> Mapping[str, int]:
        """How many jobs are in each state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with self._database.read() as connection:
            found = {str(state): int(count) for state, count in connection.execute(query)}
        return {state.value: found.get(state, 0) for state in JobState}

    def claim(self, owner: str, job_id: str | None = None) -> Job | None:
        """Take the job that has waited longest, or that its owner has left; None where there is none.

        With ``job_id`` that one or none.
        """
        now = self._database.now()
        values: dict[str, Any] = {
            "state": JobState.RUNNING,
            "owner": owner,
            "lease_until_s": now + self.lease_s,
            "attempts": jobs.c.attempts + 1,
            "started_s": now,
            "progress": 0.0,
            "message": "running",
        }
        abandoned = sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_until_s < now)
        wanted = sa.true() if job_id is None else jobs.c.id == job_id
        with self._database.write(durable=False) as connection:  # what a power cut forgets is claimed anew
            # Two looks into the index by state; one condition for both would read all jobs that have ended too.
            for claimable in (abandoned, jobs.c.state == JobState.PENDING):
                oldest = sa.select(jobs.c.number).where(claimable, wanted).order_by(jobs.c.number).limit(1)
                chosen = jobs.c.number == oldest.with_for_update(skip_locked=True).scalar_subquery()
                if row := connection.execute(jobs.update().where(chosen).values(values).returning(jobs)).one_or_none():
                    return _job(row)
        return None

    def renew(self, job: Job, progress: float) -> None:
        """Hold on to a claimed job, and say how far it is.

        Raises:
            LeaseLost: it was cancelled, deleted or taken over.
        """
        with self._database.write(durable=False) as connection:
            _change(connection, job, progress=progress, lease_until_s=self._database.now() + self.lease_s)

    def release(self, job: Job, message: str) -> None:
        """Give a claimed job back: it is pending again, in its old place.

        Raises:
            LeaseLost: as `renew`.
        """
        with self._database.write() as connection:
            _change(connection, job, **_RELEASED, message=message)

    def release_all(self, owner: str) -> int:
        """Give back all that an owner held who is known to be gone; how many."""
        held = sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.owner == owner)
        with self._database.write() as connection:
            return connection.execute(
                jobs.update().where(held).values({**_RELEASED, "message": "interrupted"})
            ).rowcount

    def finish(self, job: Job, result: str, deliver: Callable[[], None] = lambda: None) -> Job | None:
        """A claimed job is done.

        Args:
            job: as it was claimed.
            result: what came of it.
            deliver: puts the output into its place, within the transaction: whoever takes the job over or deletes it
                is before all of it or after.

        Returns:
            The job of its workflow that can begin now.

        Raises:
            LeaseLost: as `renew`; nothing was delivered.
        """
        with self._database.write() as connection:
            done = {"state": JobState.COMPLETED, "result": result, "progress": 1.0, "message": "completed"}
            _change(connection, job, **self._ended(), **done)
            next_one = sa.and_(jobs.c.position == job.position + 1, jobs.c.state == JobState.BLOCKED)
            following = sa.and_(_after(job.workflow_id, job.position), next_one)
            ready = {"state": JobState.PENDING, "sent_s": self._database.now()}
            row = connection.execute(jobs.update().where(following).values(ready).returning(jobs)).one_or_none()
            deliver()
        return _job(row) if row else None

    def fail(self, job: Job, message: str, code: str) -> None:
        """A claimed job can't be done, nor what follows it in its workflow.

        Raises:
            LeaseLost: as `renew`.
        """
        with self._database.write() as connection:
            _change(connection, job, **self._ended(), state=JobState.FAILED, message=message, error_code=code)
            self._cancel(connection, _after(job.workflow_id, job.position), "not begun: an earlier stage failed")

    def cancel(self, job_id: str) -> Job | None:
        """End an unfinished job and what follows it. Who runs it learns of it from the next `renew`.

        None where there is no such job.
        """
        with self._database.write() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
            if row is None:
                return None
            following = _after(row.workflow_id, row.position)
            self._cancel(connection, sa.or_(jobs.c.number == row.number, following), "cancelled")
            return _job(connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one())

    def delete(self, job_id: str) -> bool:
        """Forget a job, whatever it is at; whether there was one."""
        with self._database.write() as connection:
            return connection.execute(jobs.delete().where(jobs.c.id == job_id)).rowcount > 0

    def delete_ended(self, age_s: float) -> list[str]:
        """Forget jobs that ended so many seconds ago, unless their workflow goes on; their ids."""
        others = jobs.alias()
        going_on = sa.select(others.c.workflow_id).where(
            others.c.workflow_id == jobs.c.workflow_id, others.c.state.in_(UNFINISHED)
        )
        ended = sa.and_(jobs.c.ended_s <= self._database.now() - age_s, ~going_on.exists())
        with self._database.write() as connection:
            return list(connection.execute(jobs.delete().where(ended).returning(jobs.c.id)).scalars())

    def _hold(self, connection: sa.Connection, number: int, needed: Collection[str]) -> None:
        for upload in sorted(needed):
            # An update that changes nothing holds the row: nobody removes the upload before the job is there.
            there = sa.and_(uploads.c.id == upload, is_kept(self._database.now()))
            if not connection.execute(uploads.update().where(there).values(id=upload)).rowcount:
                raise UploadNotFound(upload)
            connection.execute(job_uploads.insert().values(job=number, upload=upload))

    def _ended(self) -> dict[str, Any]:
        return {"ended_s": self._database.now(), "lease_until_s": None}

    def _cancel(self, connection: sa.Connection, chosen: sa.ColumnElement[bool], message: str) -> None:
        unfinished = sa.and_(chosen, jobs.c.state.in_(UNFINISHED))
        values = {**self._ended(), "state": JobState.CANCELLED, "message": message}
        connection.execute(jobs.update().where(unfinished).values(values))


_RELEASED = {"state": JobState.PENDING, "owner": None, "lease_until_s": None, "progress": 0.0}


def is_kept(now: sa.ColumnElement[float]) -> sa.ColumnElement[bool]:
    """Of an upload: its time is not over, or an unfinished job needs it."""
    needing = (
        sa.select(job_uploads.c.upload)
        .join(jobs, jobs.c.number == job_uploads.c.job)
        .where(job_uploads.c.upload == uploads.c.id, jobs.c.state.in_(UNFINISHED))
    )
    return sa.or_(uploads.c.expires_s >= now, needing.exists())


def _change(connection: sa.Connection, job: Job, **values: Any) -> None:
    # The number of the attempt tells two claims of one owner apart; that of a deleted job may be given out again.
    own = sa.and_(
        jobs.c.id == job.id,
        jobs.c.state == JobState.RUNNING,
        jobs.c.owner == job.owner,
        jobs.c.attempts == job.attempts,
    )
    if not connection.execute(jobs.update().where(own).values(values)).rowcount:
        raise LeaseLost(job.id)


def _after(workflow_id: str | None, position: int) -> sa.ColumnElement[bool]:
    """What follows in a workflow; nothing where there is none."""
    if workflow_id is None:
        return sa.false()
    return sa.and_(jobs.c.workflow_id == workflow_id, jobs.c.position > position)


def _count(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(jobs).where(condition)).scalar_one()


def _job(row: Any) -> Job:
    return Job(**(dict(row._mapping) | {"state": JobState(row.state)}))
