"""The job queue in SQL: accepted jobs, their leases, retries and results.

A running job belongs to an owner, which renews a lease. A job whose lease has expired, or whose owner has died, is
queued again; after a number of failed attempts it fails. The jobs of a workflow run one after another. Every method is
one short transaction and blocks its thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from streaming_server.errors import JobQueueFull, LeaseLost, UploadNotFound
from streaming_server.jobs.database import Database, consents, job_uploads, jobs, uploads, voices

log = logging.getLogger(__name__)

_RETRY_PAUSE_S = 0.5
"""Pause before the third attempt; doubled for each further one, up to `_MAX_RETRY_PAUSE_S`."""
_MAX_RETRY_PAUSE_S = 60.0
_STORAGE_PAUSES_S = (1.0, 10.0)
"""Minimum and maximum pause between attempts during a storage outage."""


class JobState(StrEnum):
    BLOCKED = "blocked"
    """Part of a workflow, waiting for the completion of a previous job."""
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


PROCESS_DIED = "process_died"
"""Error code of a job whose process died in the last attempt."""
UNFINISHED = (JobState.BLOCKED, JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to submit."""

    id: str
    name: str
    """The kind of job, such as ``indextts.generate_speech``."""
    payload: str
    uploads: Collection[str] = ()
    """Ids of the uploads that it uses."""
    preview: str = ""
    """Beginning of the text, for lists."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row; times are UNIX seconds."""

    number: int
    """Increases in the order of acceptance."""
    id: str
    name: str
    workflow_id: str | None
    position: int
    """Position in the workflow."""
    state: JobState
    payload: str
    """Empty in pages and chains."""
    preview: str
    result: str | None
    """None in pages and chains."""
    message: str
    error_code: str | None
    progress: float
    """0.0-1.0."""
    attempts: int
    """Number of claims."""
    failures: int
    """Number of attempts that ended with an engine failure or the death of the process."""
    retry_at_s: float | None
    """Earliest time of the next claim."""
    waiting_since_s: float | None
    """Start of the storage outage for whose end the job waits."""
    owner: str | None
    """The process that runs it or ran it last."""
    lease_until_s: float | None
    created_s: float
    sent_s: float | None
    """Time of the last message to a worker."""
    started_s: float | None
    ended_s: float | None


class JobStore:
    """All jobs of one database."""

    def __init__(
        self,
        database: Database,
        *,
        max_pending: int,
        lease_s: float,
        max_attempts: int = 5,
        storage_wait_s: float = 120.0,
    ) -> None:
        """
        Args:
            database: the database of the jobs.
            max_pending: maximum number of jobs that wait, pending or blocked; a longer chain needs an empty queue.
            lease_s: duration of a lease.
            max_attempts: maximum number of failed attempts of a job.
            storage_wait_s: maximum wait of a workflow's job for the end of a storage outage; others wait without limit.
        """
        self._database = database
        self._max_pending = max_pending
        self._max_attempts = max_attempts
        self._storage_wait_s = storage_wait_s
        self.lease_s = lease_s

    def submit(self, chain: Sequence[NewJob], workflow_id: str | None = None) -> list[Job]:
        """Accept jobs that run one after another. They are stored durably on return.

        Raises:
            JobQueueFull: more jobs would wait than the limit allows.
            UploadNotFound: an upload that they use does not exist or has expired.
            StorageFull, StorageUnavailable: they cannot be stored.
        """
        accepted = []
        with self._database.write() as connection:
            waiting = _count(connection, jobs.c.state.in_((JobState.PENDING, JobState.BLOCKED)))
            if waiting and waiting + len(chain) > self._max_pending:
                raise JobQueueFull(self._max_pending)
            for position, new in enumerate(chain):
                values = {
                    "id": new.id,
                    "name": new.name,
                    "workflow_id": workflow_id,
                    "position": position,
                    "state": JobState.BLOCKED if position else JobState.PENDING,
                    "payload": new.payload,
                    "preview": new.preview,
                    "message": "accepted",
                    "progress": 0.0,
                    "attempts": 0,
                    "failures": 0,
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
        """Return the jobs of a workflow in order, without payloads and results; empty for an unknown id."""
        query = sa.select(*_LISTED).where(jobs.c.workflow_id == workflow_id).order_by(jobs.c.number)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def page(self, limit: int, offset: int = 0, states: Sequence[JobState] = ()) -> tuple[list[Job], int]:
        """Return a page of the jobs outside workflows, newest first, and the total; ``states`` filters both.

        The jobs come without payloads and results, of which each may be large.
        """
        chosen = sa.and_(jobs.c.workflow_id.is_(None), jobs.c.state.in_(states) if states else sa.true())
        query = sa.select(*_LISTED).where(chosen).order_by(jobs.c.number.desc()).limit(limit).offset(offset)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query)], _count(connection, chosen)

    def counts(self) -> Mapping[str, int]:
        """Return the number of jobs by state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with self._database.read() as connection:
            found = {str(state): int(count) for state, count in connection.execute(query)}
        return {state.value: found.get(state, 0) for state in JobState}

    def claim(self, owner: str, job_id: str | None = None) -> Job | None:
        """Claim the oldest job that is due, or the one with ``job_id``; None if there is none.

        Jobs whose lease has expired are queued again first.
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
        wanted = sa.true() if job_id is None else jobs.c.id == job_id
        with self._database.write(durable=False) as connection:  # a claim that is lost in a power failure is repeated
            self.requeue_expired(connection)
            oldest = (
                sa.select(jobs.c.number).where(wanted, is_due(self._database.now())).order_by(jobs.c.number).limit(1)
            )
            chosen = jobs.c.number == oldest.with_for_update(skip_locked=True).scalar_subquery()
            row = connection.execute(jobs.update().where(chosen).values(values).returning(jobs)).one_or_none()
        return _job(row) if row else None

    def renew(self, job: Job, progress: float) -> None:
        """Extend the lease of a claimed job and record its progress.

        Raises:
            LeaseLost: the job was cancelled, deleted or taken over.
        """
        with self._database.write(durable=False) as connection:
            _change(connection, job, progress=progress, lease_until_s=self._database.now() + self.lease_s)

    def release(self, job: Job, message: str) -> None:
        """Requeue a claimed job at its old position. Does not count as a failed attempt.

        Raises:
            LeaseLost: as `renew`.
        """
        with self._database.write() as connection:
            _change(connection, job, **_RELEASED, message=message)

    def release_all(self, owner: str) -> int:
        """Requeue the jobs of an owner that shuts down and return their number. Does not count as a failed attempt."""
        with self._database.write() as connection:
            released = {**_RELEASED, "message": "interrupted by a shutdown"}
            return connection.execute(jobs.update().where(_is_held_by(owner)).values(released)).rowcount

    def requeue_dead(self, owner: str) -> int:
        """Requeue the jobs of a dead owner and return their number. Counts as a failed attempt."""
        with self._database.write() as connection:
            return len(self._requeue(connection, _is_held_by(owner)))

    def requeue_expired(self, connection: sa.Connection) -> Sequence[sa.Row[Any]]:
        """Requeue jobs whose lease has expired and return their rows. Counts as a failed attempt."""
        expired = sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_until_s < self._database.now())
        return self._requeue(connection, expired)

    def retry(self, job: Job, reason: str, code: str) -> None:
        """Count a failed attempt of a claimed job: requeue it, or fail it after the last attempt.

        Raises:
            LeaseLost: as `renew`.
        """
        with self._database.write() as connection:
            _change(connection, job, **self._counted(job, reason, code))
            if job.failures + 1 >= self._max_attempts:
                self._cancel_following(connection, job)

    def postpone(self, job: Job, reason: str, code: str) -> None:
        """Postpone a claimed job until the end of a storage outage. Does not count as a failed attempt.

        A workflow's job fails when the outage has lasted for ``storage_wait_s``.

        Raises:
            LeaseLost: as `renew`.
        """
        now = self._database.now()
        with self._database.write() as connection:
            _change(connection, job, waiting_since_s=sa.func.coalesce(jobs.c.waiting_since_s, now))
            waited = sa.select(now - jobs.c.waiting_since_s).where(jobs.c.id == job.id)
            waited_s = connection.execute(waited).scalar_one()
            if job.workflow_id is not None and waited_s >= self._storage_wait_s:
                message = f"{reason} (waited for {waited_s:.0f} s)"
                _change(connection, job, **self._ended(), state=JobState.FAILED, message=message, error_code=code)
                self._cancel_following(connection, job)
                return
            pause_s = min(_STORAGE_PAUSES_S[1], max(_STORAGE_PAUSES_S[0], waited_s / 2))
            _change(connection, job, **_RELEASED, message=f"waiting for storage: {reason}", retry_at_s=now + pause_s)

    def finish(self, job: Job, result: str, deliver: Callable[[], None] = lambda: None) -> Job | None:
        """Complete a claimed job.

        Args:
            job: the job as claimed.
            result: its result as JSON.
            deliver: moves the output into place, within the transaction, so that a takeover or a deletion happens
                either before or after it.

        Returns:
            The next job of its workflow, which is ready now.

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
        """Fail a claimed job and cancel the following jobs of its workflow.

        Raises:
            LeaseLost: as `renew`.
        """
        with self._database.write() as connection:
            _change(connection, job, **self._ended(), state=JobState.FAILED, message=message, error_code=code)
            self._cancel_following(connection, job)

    def cancel(self, job_id: str) -> Job | None:
        """Cancel an unfinished job and the following ones; None for an unknown id.

        The next `renew` of the process that runs it raises `LeaseLost`.
        """
        with self._database.write() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
            if row is None:
                return None
            following = _after(row.workflow_id, row.position)
            self._cancel(connection, sa.or_(jobs.c.number == row.number, following), "cancelled")
            return _job(connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one())

    def delete(self, job_id: str) -> bool:
        """Delete a job in any state; returns whether it existed."""
        with self._database.write() as connection:
            return connection.execute(jobs.delete().where(jobs.c.id == job_id)).rowcount > 0

    def delete_ended(self, age_s: float) -> list[str]:
        """Delete jobs that ended at least ``age_s`` ago and whose workflow has ended, and return their ids."""
        others = jobs.alias()
        unfinished = sa.select(others.c.workflow_id).where(
            others.c.workflow_id == jobs.c.workflow_id, others.c.state.in_(UNFINISHED)
        )
        ended = sa.and_(jobs.c.ended_s <= self._database.now() - age_s, ~unfinished.exists())
        with self._database.write() as connection:
            return list(connection.execute(jobs.delete().where(ended).returning(jobs.c.id)).scalars())

    def _hold(self, connection: sa.Connection, number: int, needed: Collection[str]) -> None:
        for upload in sorted(needed):
            # An update without a change locks the row, so that the upload is not removed before the job is committed.
            there = sa.and_(uploads.c.id == upload, is_kept(self._database.now()))
            if not connection.execute(uploads.update().where(there).values(id=upload)).rowcount:
                raise UploadNotFound(upload)
            connection.execute(job_uploads.insert().values(job=number, upload=upload))

    def _ended(self) -> dict[str, Any]:
        return {"ended_s": self._database.now(), "lease_until_s": None, "retry_at_s": None, "waiting_since_s": None}

    def _requeue(self, connection: sa.Connection, lost: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
        """Count a failed attempt of jobs whose process died and return the rows of the requeued ones."""
        rows = connection.execute(sa.select(jobs).where(lost).with_for_update(skip_locked=True)).all()
        pending = []
        for row in rows:
            values = self._counted(row, "the process that ran it died", PROCESS_DIED)
            connection.execute(jobs.update().where(jobs.c.number == row.number).values(values))
            if values["state"] == JobState.PENDING:
                pending.append(row)
            else:
                self._cancel_following(connection, row)
            log.warning("job %s: id=%s reason=%r", _OUTCOMES[values["state"]], row.id, values["message"])
        return pending

    def _counted(self, job: Job | sa.Row[Any], reason: str, code: str) -> dict[str, Any]:
        """Return the values of a job after another failed attempt."""
        failures = job.failures + 1
        message = f"{reason} (attempt {failures} of {self._max_attempts})"
        if failures >= self._max_attempts:
            failed = {"state": JobState.FAILED, "message": message, "error_code": code}
            return {**self._ended(), **failed, "failures": failures}
        # The first retry is immediate, because most failures are restarts.
        pause_s = min(_MAX_RETRY_PAUSE_S, _RETRY_PAUSE_S * 2.0 ** min(failures - 2, 16))
        retry_at_s = self._database.now() + pause_s if failures > 1 else None
        waiting = {"message": f"to be retried: {message}", "retry_at_s": retry_at_s, "waiting_since_s": None}
        return {**_RELEASED, **waiting, "failures": failures}

    def _cancel_following(self, connection: sa.Connection, job: Job | sa.Row[Any]) -> None:
        self._cancel(connection, _after(job.workflow_id, job.position), "not begun: an earlier stage failed")

    def _cancel(self, connection: sa.Connection, chosen: sa.ColumnElement[bool], message: str) -> None:
        unfinished = sa.and_(chosen, jobs.c.state.in_(UNFINISHED))
        values = {**self._ended(), "state": JobState.CANCELLED, "message": message}
        connection.execute(jobs.update().where(unfinished).values(values))


_LISTED = (
    *(column for column in jobs.c if column.name not in {"payload", "result"}),
    sa.literal("").label("payload"),
    sa.null().label("result"),
)
"""The columns of a job in a list."""
_OUTCOMES = {JobState.PENDING: "requeued", JobState.FAILED: "failed"}
_RELEASED = {"state": JobState.PENDING, "owner": None, "lease_until_s": None, "progress": 0.0}


def is_kept(now: sa.ColumnElement[float]) -> sa.ColumnElement[bool]:
    """Whether an upload has not expired, or a stored voice, a consent or an unfinished job needs it."""
    needing = (
        sa.select(job_uploads.c.upload)
        .join(jobs, jobs.c.number == job_uploads.c.job)
        .where(job_uploads.c.upload == uploads.c.id, jobs.c.state.in_(UNFINISHED))
    )
    named = (sa.select(table.c.upload).where(table.c.upload == uploads.c.id).exists() for table in (voices, consents))
    return sa.or_(uploads.c.expires_s >= now, needing.exists(), *named)


def is_due(now: sa.ColumnElement[float]) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.state == JobState.PENDING, sa.func.coalesce(jobs.c.retry_at_s, 0.0) <= now)


def _is_held_by(owner: str) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.owner == owner)


def _change(connection: sa.Connection, job: Job, **values: Any) -> None:
    # ``attempts`` distinguishes two claims of one owner; ``id`` is compared because numbers of deleted rows are reused.
    own = sa.and_(
        jobs.c.id == job.id,
        jobs.c.state == JobState.RUNNING,
        jobs.c.owner == job.owner,
        jobs.c.attempts == job.attempts,
    )
    if not connection.execute(jobs.update().where(own).values(values)).rowcount:
        raise LeaseLost(job.id)


def _after(workflow_id: str | None, position: int) -> sa.ColumnElement[bool]:
    """Select the following jobs of a workflow; none for a job outside a workflow."""
    if workflow_id is None:
        return sa.false()
    return sa.and_(jobs.c.workflow_id == workflow_id, jobs.c.position > position)


def _count(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(jobs).where(condition)).scalar_one()


def _job(row: Any) -> Job:
    return Job(**(dict(row._mapping) | {"state": JobState(row.state)}))
