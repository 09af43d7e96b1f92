"""The job store with SQLite and PostgreSQL: jobs run exactly once in spite of process deaths."""

from __future__ import annotations

import multiprocessing
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest
import sqlalchemy as sa

from streaming_server.errors import JobQueueFull, LeaseLost, UploadNotFound
from streaming_server.jobs.database import Database
from streaming_server.jobs.inspection import SPEECH
from streaming_server.jobs.storage import Storage
from streaming_server.jobs.store import Job, JobState, JobStore, NewJob
from tests.support.postgres import Clock, opened_storage, together
from tests.support.server import around_now

LEASE_S = 600.0


@pytest.fixture
def storage(tmp_path: Path, database_url: str) -> Iterator[Storage]:
    with opened_storage(tmp_path, database_url, max_pending=5, lease_s=LEASE_S) as opened:
        yield opened


@pytest.fixture
def store(storage: Storage) -> JobStore:
    return storage.jobs


def submitted(store: JobStore, payload: str = "") -> Job:
    return store.submit([NewJob(uuid.uuid4().hex, SPEECH, payload)])[0]


def claimed(store: JobStore, owner: str = "me") -> Job:
    job = store.claim(owner)
    assert job is not None
    return job


def again(store: JobStore, job: Job) -> Job:
    found = store.get(job.id)
    assert found is not None
    return found


def test_a_job_on_its_way(store: JobStore) -> None:
    job = submitted(store, '{"text": "好"}')
    assert (job.state, job.payload, job.message) == (JobState.PENDING, '{"text": "好"}', "accepted")
    assert (job.progress, job.attempts, job.started_s, job.ended_s) == (0.0, 0, None, None)
    assert job.created_s == around_now()
    mine = claimed(store)
    assert (mine.id, mine.state, mine.owner, mine.attempts) == (job.id, JobState.RUNNING, "me", 1)
    store.renew(mine, 0.5)
    assert again(store, job).progress == 0.5
    store.finish(mine, "done")
    done = again(store, job)
    assert (done.state, done.result, done.progress, done.owner, done.lease_until_s) == (
        *(JobState.COMPLETED, "done", 1.0),
        *(mine.owner, None),
    )
    assert done.started_s is not None
    assert done.ended_s is not None
    assert job.created_s <= done.started_s <= done.ended_s
    assert store.claim("me") is None


def test_what_cannot_be_done_says_why(store: JobStore) -> None:
    job = submitted(store)
    store.fail(claimed(store), "no voice", "voice_unreadable")
    failed = again(store, job)
    assert (failed.state, failed.message, failed.ended_s is None) == (JobState.FAILED, "no voice", False)
    assert store.claim("me") is None


def test_the_oldest_goes_first_and_a_released_one_keeps_its_place(store: JobStore) -> None:
    first, second, third = submitted(store), submitted(store), submitted(store)
    mine = claimed(store)
    assert claimed(store).id == second.id
    store.release(mine, "interrupted")
    released = again(store, first)
    assert (released.state, released.owner, released.message) == (JobState.PENDING, None, "interrupted")
    assert [claimed(store).id for _ in range(2)] == [first.id, third.id]
    assert again(store, first).attempts == 2


def claims(store: JobStore, owner: str) -> list[int]:
    taken = []
    while job := store.claim(owner):
        taken.append(job.number)
    return taken


def test_many_threads_never_take_one_job_twice(tmp_path: Path, database_url: str) -> None:
    with opened_storage(tmp_path, database_url) as storage:
        numbers = [submitted(storage.jobs).number for _ in range(150)]
        taken: list[list[int]] = []
        together(6, lambda index: taken.append(claims(storage.jobs, str(index))))
    assert sorted(chain.from_iterable(taken)) == numbers
    assert all(own == sorted(own) for own in taken), "out of order"


def claims_of_a_process(url: str, owner: str, begin: str) -> list[int]:
    database = Database(url)
    store = JobStore(database, max_pending=1, lease_s=LEASE_S)
    while not Path(begin).exists():
        time.sleep(0.001)
    try:
        return claims(store, owner)
    finally:
        database.close()


def test_many_processes_never_take_one_job_twice(tmp_path: Path, database_url: str) -> None:
    with opened_storage(tmp_path, database_url) as storage:
        numbers = [submitted(storage.jobs).number for _ in range(150)]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        begin = tmp_path / "begin"
        waiting = pool.starmap_async(claims_of_a_process, [(database_url, str(n), str(begin)) for n in range(3)])
        time.sleep(1.0)
        begin.touch()
        taken = waiting.get(600)
        pool.close()
        pool.join()
    assert sorted(chain.from_iterable(taken)) == numbers
    assert all(own == sorted(own) for own in taken), "out of order"


def test_one_that_is_not_heard_of_is_taken_over(store: JobStore, clock: Clock) -> None:
    submitted(store)
    mine = claimed(store, "me")
    assert store.claim("you") is None
    clock.advance(LEASE_S / 2)
    store.renew(mine, 0.1)
    clock.advance(LEASE_S * 0.75)
    assert store.claim("you") is None, "it was renewed"
    clock.advance(LEASE_S / 2)
    yours = claimed(store, "you")
    assert (yours.id, yours.attempts, yours.progress) == (mine.id, 2, 0.0)
    delivered: list[int] = []
    late: list[Callable[[], object]] = [
        lambda: store.renew(mine, 0.9),
        lambda: store.release(mine, ""),
        lambda: store.finish(mine, "mine", lambda: delivered.append(1)),
        lambda: store.fail(mine, "", ""),
    ]
    for attempt in late:
        with pytest.raises(LeaseLost):
            attempt()
    assert not delivered
    store.finish(yours, "yours", lambda: delivered.append(2))
    assert delivered == [2]
    assert again(store, yours).result == "yours"


def test_one_owner_who_claims_twice_finishes_once(store: JobStore, clock: Clock) -> None:
    submitted(store)
    late = claimed(store)
    clock.advance(LEASE_S * 1.2)
    now = claimed(store)
    with pytest.raises(LeaseLost):
        store.finish(late, "late")
    store.finish(now, "now")
    assert again(store, now).result == "now"


def test_a_deleted_job_is_not_taken_for_the_next(store: JobStore) -> None:
    submitted(store)
    gone = claimed(store)
    assert store.delete(gone.id)
    submitted(store)
    there = claimed(store)
    with pytest.raises(LeaseLost):
        store.finish(gone, "of another")
    assert again(store, there).state is JobState.RUNNING


def test_what_was_delivered_counts_only_with_the_finish(store: JobStore) -> None:
    job = submitted(store)

    def broken() -> None:
        raise OSError("no")

    mine = claimed(store)
    with pytest.raises(OSError, match="no"):
        store.finish(mine, "done", broken)
    assert again(store, job).state is JobState.RUNNING
    store.finish(mine, "done")


def test_nobody_gets_between_a_delivery_and_its_finish(store: JobStore, clock: Clock) -> None:
    """The lease runs out while the output is put into its place."""
    submitted(store)
    mine = claimed(store)
    others: list[Job | None] = []

    def deliver() -> None:
        clock.advance(LEASE_S * 1.5)
        thread.start()
        time.sleep(0.1)

    thread = threading.Thread(target=lambda: others.append(store.claim("you")))
    store.finish(mine, "done", deliver)
    thread.join()
    assert others == [None]
    assert again(store, mine).result == "done"


def test_what_a_dead_owner_held_is_pending_at_once(store: JobStore) -> None:
    jobs = [submitted(store) for _ in range(3)]
    claimed(store, "dead")
    store.finish(claimed(store, "dead"), "done")
    claimed(store, "alive")
    assert store.release_all("dead") == 1
    assert [again(store, job).state for job in jobs] == ["pending", "completed", "running"]
    assert claimed(store, "me").id == jobs[0].id


def test_cancelling(store: JobStore) -> None:
    jobs = [submitted(store) for _ in range(3)]
    running, done = claimed(store), claimed(store)
    store.finish(done, "done")
    for job in jobs:
        store.cancel(job.id)
    assert [again(store, job).state for job in jobs] == ["cancelled", "completed", "cancelled"]
    with pytest.raises(LeaseLost):
        store.renew(running, 0.5)
    assert store.claim("me") is None
    assert store.cancel("no such") is None


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.BLOCKED])
def test_deleting(store: JobStore, state: JobState) -> None:
    job = submitted(store)
    actions: dict[JobState, Callable[[], object]] = {
        JobState.PENDING: lambda: None,
        JobState.RUNNING: lambda: claimed(store),
        JobState.COMPLETED: lambda: store.finish(claimed(store), ""),
        JobState.FAILED: lambda: store.fail(claimed(store), "", ""),
        JobState.CANCELLED: lambda: store.cancel(job.id),
    }
    actions[state]()
    assert again(store, job).state is state
    assert store.delete(job.id)
    assert store.get(job.id) is None
    assert not store.delete(job.id)


def test_only_what_ended_is_forgotten_by_age(store: JobStore) -> None:
    done, running, pending = (submitted(store) for _ in range(3))
    store.finish(claimed(store), "")
    claimed(store)
    assert store.delete_ended(60) == []
    assert store.delete_ended(0) == [done.id]
    assert {again(store, job).state for job in (running, pending)} == {JobState.RUNNING, JobState.PENDING}


def test_only_so_many_may_be_pending(store: JobStore) -> None:
    for _ in range(5):
        submitted(store)
    with pytest.raises(JobQueueFull, match="at most 5 tasks may be pending"):
        submitted(store)
    assert store.page(10)[1] == 5
    claimed(store)
    submitted(store)


def test_a_job_whose_upload_is_unknown_is_not_accepted(store: JobStore) -> None:
    with pytest.raises(UploadNotFound):
        store.submit([NewJob("a" * 32, SPEECH, "", ["0" * 64])])
    assert store.page(10) == ([], 0)


def test_pages_and_counts(tmp_path: Path, database_url: str) -> None:
    with opened_storage(tmp_path, database_url) as storage:
        store = storage.jobs
        jobs = [submitted(store) for _ in range(7)]
        store.finish(claimed(store), "")
        store.fail(claimed(store), "", "")
        claimed(store)
        newest = [job.id for job in reversed(jobs)]

        def ids(limit: int, offset: int = 0, *states: JobState) -> tuple[list[str], int]:
            page, total = store.page(limit, offset, states)
            return [job.id for job in page], total

        assert ids(3) == (newest[:3], 7)
        assert ids(3, 2) == (newest[2:5], 7)
        assert ids(3, 6) == (newest[6:], 7)
        assert ids(3, 9) == ([], 7)
        assert ids(9, 1, JobState.PENDING) == (newest[1:4], 4)
        assert ids(9, 0, JobState.FAILED, JobState.COMPLETED) == (newest[5:], 2)
        counts = {"blocked": 0, "pending": 4, "running": 1, "completed": 1, "failed": 1, "cancelled": 0}
        assert store.counts() == counts


def test_a_page_and_its_total_are_of_one_moment(storage: Storage) -> None:
    submitted(storage.jobs)
    other = threading.Thread(target=lambda: submitted(storage.jobs))

    def meanwhile(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "count(" in statement and not other.ident:
            other.start()
            other.join()

    sa.event.listen(storage.database._engine, "before_cursor_execute", meanwhile)
    page, total = storage.jobs.page(10)
    assert other.ident
    assert len(page) == total
    assert storage.jobs.page(10)[1] == 2
