"""How the job store counts failed attempts, process deaths and storage outages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streaming_server.errors import LeaseLost
from streaming_server.jobs import store as store_module
from streaming_server.jobs.database import jobs
from streaming_server.jobs.inspection import SPEECH
from streaming_server.jobs.storage import Storage
from streaming_server.jobs.store import Job, JobState, JobStore, NewJob
from tests.support.postgres import Clock, opened_storage

ATTEMPTS = 3


@pytest.fixture
def storage(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A lease is over as soon as it begins, and nothing pauses before it is retried."""
    monkeypatch.setattr(store_module, "_RETRY_PAUSE_S", 0.0)
    with opened_storage(tmp_path, database_url, lease_s=0.0, max_attempts=ATTEMPTS) as opened:
        yield opened


@pytest.fixture
def store(storage: Storage) -> JobStore:
    return storage.jobs


def chain(store: JobStore, *ids: str, workflow_id: str | None = None) -> list[Job]:
    return store.submit([NewJob(job_id, SPEECH, "") for job_id in ids], workflow_id)


def claimed(store: JobStore, owner: str = "me") -> Job:
    job = store.claim(owner)
    assert job is not None
    return job


def found(store: JobStore, job_id: str) -> Job:
    job = store.get(job_id)
    assert job is not None
    return job


def lease_expires(store: JobStore) -> None:
    """The next claim finds it expired."""


def owner_dies(store: JobStore) -> None:
    store.requeue_dead("me")


def engine_fails(store: JobStore) -> None:
    store.retry(found(store, "a"), "the process that ran it died", "process_died")


@pytest.mark.parametrize("happens", [lease_expires, owner_dies, engine_fails])
def test_an_attempt_that_fails_is_repeated_a_number_of_times(
    store: JobStore, happens: Callable[[JobStore], None]
) -> None:
    chain(store, "a", "b", workflow_id="workflow_1")
    for attempt in range(1, ATTEMPTS + 1):
        job = claimed(store)
        assert (job.id, job.attempts, job.failures) == ("a", attempt, attempt - 1)
        happens(store)
    assert store.claim("me") is None
    failed = found(store, "a")
    assert (failed.state, failed.failures, failed.error_code) == (JobState.FAILED, ATTEMPTS, "process_died")
    assert failed.message == "the process that ran it died (attempt 3 of 3)"
    assert failed.ended_s is not None
    assert found(store, "b").state is JobState.CANCELLED


def test_a_shutdown_and_an_outage_are_no_failed_attempts(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_STORAGE_PAUSES_S", (0.0, 0.0))
    chain(store, "a")
    for _ in range(ATTEMPTS + 1):
        claimed(store)
        assert store.release_all("me") == 1
        store.postpone(claimed(store), "no space", "storage_full")
        store.release(claimed(store), "not ready")
    job = found(store, "a")
    assert (job.state, job.failures) == (JobState.PENDING, 0)


def test_one_that_waits_for_storage_says_why_and_lets_the_next_go_first(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_STORAGE_PAUSES_S", (600.0, 600.0))
    chain(store, "a")
    chain(store, "b")
    store.postpone(claimed(store), "no space left", "storage_full")
    waiting = found(store, "a")
    assert (waiting.state, waiting.message) == (JobState.PENDING, "waiting for storage: no space left")
    assert waiting.waiting_since_s is not None
    assert waiting.retry_at_s is not None
    assert waiting.retry_at_s > waiting.waiting_since_s
    job = claimed(store)
    assert job.id == "b"
    store.finish(job, "")
    assert store.claim("me") is None
    assert store.claim("me", "a") is None, "not by its id either"


def test_the_outage_ends_with_a_failure_for_a_workflow_and_never_for_a_task(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_STORAGE_PAUSES_S", (0.0, 0.0))
    with opened_storage(tmp_path, database_url, storage_wait_s=0.0) as storage:
        store = storage.jobs
        chain(store, "a", "b", workflow_id="workflow_1")
        store.postpone(claimed(store), "no space left", "storage_full")
        failed = found(store, "a")
        assert (failed.state, failed.error_code) == (JobState.FAILED, "storage_full")
        assert failed.message.startswith("no space left (waited for ")
        assert found(store, "b").state is JobState.CANCELLED
        chain(store, "c")
        store.postpone(claimed(store), "no space left", "storage_full")
        store.postpone(claimed(store), "no space left", "storage_full")
        assert found(store, "c").state is JobState.PENDING


def test_no_pause_between_attempts_exceeds_a_minute(tmp_path: Path, database_url: str, clock: Clock) -> None:
    with opened_storage(tmp_path, database_url, lease_s=3600.0, max_attempts=2000) as storage:
        chain(storage.jobs, "a")
        with storage.database.write() as connection:
            connection.execute(jobs.update().values(failures=1100))
        storage.jobs.retry(claimed(storage.jobs), "out of memory", "engine_failed")
        assert storage.jobs.claim("me") is None
        clock.advance(61)
        claimed(storage.jobs)


def test_who_lost_the_lease_changes_nothing(store: JobStore) -> None:
    chain(store, "a")
    late = claimed(store)
    now = claimed(store)
    for change in (store.retry, store.postpone):
        with pytest.raises(LeaseLost):
            change(late, "", "")
    assert found(store, "a") == now


def test_a_message_is_not_sent_again_before_its_job_is_due(
    tmp_path: Path, database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming_server.jobs.worker_registry._UNTAKEN_S", 0.0)
    monkeypatch.setattr(store_module, "_STORAGE_PAUSES_S", (600.0, 600.0))
    with opened_storage(tmp_path, database_url, lease_s=3600.0) as storage:
        chain(storage.jobs, "a")
        job = claimed(storage.jobs)
        storage.workers.beat("idle", None, {}, is_busy=False)
        storage.jobs.postpone(job, "no space left", "storage_full")
        assert storage.workers.take_unsent() == []
        clock.advance(601)
        assert storage.workers.take_unsent() == [("a", SPEECH, None)]


def test_what_dead_processes_left_is_taken_over_before_anything_else(tmp_path: Path, database_url: str) -> None:
    with opened_storage(tmp_path, database_url) as first:
        chain(first.jobs, "a")
        assert first.jobs.claim(first.scratch.owner)
        first.scratch._lock.close()  # as the system does for a process that dies
        with opened_storage(tmp_path, database_url) as second:
            job = found(second.jobs, "a")
            assert (job.state, job.failures) == (JobState.PENDING, 1)
