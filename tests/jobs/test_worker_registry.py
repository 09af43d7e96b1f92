"""The worker registry, lost messages, and workflows in the store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from streaming_server.errors import JobQueueFull, LeaseLost, UploadNotFound
from streaming_server.jobs.storage import Storage
from streaming_server.jobs.store import Job, JobState, JobStore, NewJob
from streaming_server.jobs.worker_registry import WorkerRegistry
from tests.support.postgres import Clock, opened_storage, together
from tests.support.server import around_now

LEASE_S = 600.0


@pytest.fixture
def storage(tmp_path: Path, database_url: str) -> Iterator[Storage]:
    with opened_storage(tmp_path, database_url, lease_s=LEASE_S) as opened:
        yield opened


@pytest.fixture
def store(storage: Storage) -> JobStore:
    return storage.jobs


@pytest.fixture
def registry(storage: Storage) -> WorkerRegistry:
    return storage.workers


def chain(store: JobStore, *names: str, workflow_id: str = "workflow_1") -> list[Job]:
    new = [NewJob(f"{workflow_id}_{index}", name, "{}") for index, name in enumerate(names)]
    return store.submit(new, workflow_id)


def states(store: JobStore, workflow_id: str = "workflow_1") -> list[str]:
    return [job.state.value for job in store.chain(workflow_id)]


def test_a_chain_runs_in_its_order(store: JobStore) -> None:
    accepted = chain(store, "a", "b", "c")
    assert states(store) == ["pending", "blocked", "blocked"]
    assert store.claim("w", accepted[1].id) is None
    for index, name in enumerate("abc"):
        job = store.claim("w")
        assert job is not None
        assert (job.name, job.position) == (name, index)
        assert store.claim("w") is None
        following = store.finish(job, "{}")
        assert following == (store.get(accepted[index + 1].id) if index < 2 else None)
    assert states(store) == ["completed"] * 3


def test_a_failure_ends_what_follows_and_nothing_else(store: JobStore) -> None:
    chain(store, "a", "b", "c")
    chain(store, "d", "e", workflow_id="workflow_2")
    first = store.claim("w")
    assert first is not None
    store.finish(first, "{}")
    second = store.claim("w", "workflow_1_1")
    assert second is not None
    store.fail(second, "no", "engine_failed")
    assert states(store) == ["completed", "failed", "cancelled"]
    assert states(store, "workflow_2") == ["pending", "blocked"]
    failed = store.get(second.id)
    assert failed is not None
    assert (failed.message, failed.error_code) == ("no", "engine_failed")


@pytest.mark.parametrize("index", [0, 1])
def test_cancelling_ends_what_follows(store: JobStore, index: int) -> None:
    accepted = chain(store, "a", "b", "c")
    running = store.claim("w")
    assert running is not None
    store.cancel(accepted[index].id)
    assert states(store) == ["running" if index else "cancelled", "cancelled", "cancelled"]
    if index:
        assert store.finish(running, "{}") is None
    else:
        with pytest.raises(LeaseLost):
            store.finish(running, "{}")
    assert states(store)[1:] == ["cancelled", "cancelled"]


def test_a_job_of_no_workflow_has_no_followers(store: JobStore) -> None:
    one, other = (store.submit([NewJob(name, name, "{}")])[0] for name in ("one", "other"))
    job = store.claim("w", one.id)
    assert job is not None
    store.fail(job, "no", "x")
    assert store.get(other.id).state is JobState.PENDING  # type: ignore[union-attr]


def test_a_chain_is_accepted_as_a_whole_or_not(store: JobStore) -> None:
    with pytest.raises(UploadNotFound):
        store.submit([NewJob("a", "a", "{}"), NewJob("b", "b", "{}", {"0" * 64})], "workflow_1")
    assert store.chain("workflow_1") == []


def test_each_job_of_a_chain_counts_as_pending(tmp_path: Path, database_url: str) -> None:
    with opened_storage(tmp_path, database_url, max_pending=4) as opened:
        chain(opened.jobs, "a", "b")
        with pytest.raises(JobQueueFull, match="at most 4 tasks may be pending"):
            chain(opened.jobs, "c", "d", "e", workflow_id="workflow_2")
        chain(opened.jobs, "c", "d", workflow_id="workflow_2")
        for _ in range(4):
            opened.jobs.claim("w")
        opened.jobs.cancel("workflow_1_0")
        opened.jobs.cancel("workflow_2_0")
        chain(opened.jobs, *"abcdef", workflow_id="workflow_3")
        with pytest.raises(JobQueueFull):
            chain(opened.jobs, "g", workflow_id="workflow_4")


def test_the_numbers_of_claimed_jobs_are_those_of_all(store: JobStore, registry: WorkerRegistry) -> None:
    for name in "abc":
        chain(store, name, workflow_id=f"workflow_{name}")
        assert store.claim("w")
    store.cancel("workflow_b_0")
    claims = registry.claims(1)
    assert (claims.total, claims.running) == (3, 2)
    assert [activity.job_id for activity in claims.latest] == ["workflow_c_0"]
    assert [activity.job_id for activity in registry.claims(9).latest][2] == "workflow_b_0"


def test_workflows_are_not_on_the_page_of_the_jobs(store: JobStore) -> None:
    chain(store, "a", "b")
    alone = store.submit([NewJob("alone", "a", "{}")])
    (listed,), total = store.page(10)
    assert (listed, total) == (replace(alone[0], payload=""), 1)
    assert store.get("alone") == alone[0]


def test_a_worker_is_there_for_as_long_as_it_says_so(registry: WorkerRegistry, clock: Clock) -> None:
    registry.beat("one", None, {}, is_busy=False)
    registry.beat("two", 5.0, {"name": "a device"}, is_busy=True)
    one, two = registry.alive()
    assert (one.id, one.entered_s, one.is_busy, one.device) == ("one", None, False, {})
    assert (two.id, two.entered_s, two.is_busy, two.device) == ("two", 5.0, True, {"name": "a device"})
    registry.leave("two")
    assert [worker.id for worker in registry.alive()] == ["one"]
    clock.advance(2.5 * LEASE_S)
    assert registry.alive() == []
    registry.beat("one", None, {}, is_busy=False)
    assert [worker.id for worker in registry.alive()] == ["one"]


def test_one_that_has_a_job_is_busy_whatever_it_said_last(registry: WorkerRegistry, store: JobStore) -> None:
    registry.beat("w", None, {}, is_busy=False)
    chain(store, "a")
    job = store.claim("w")
    assert job is not None
    assert [worker.is_busy for worker in registry.alive()] == [True]
    claims = registry.claims(10)
    (beat,) = claims.latest
    assert (claims.total, claims.running) == (1, 1)
    assert (beat.job_id, beat.job_name, beat.worker_id, beat.state) == (job.id, "a", "w", JobState.RUNNING)
    assert beat.heartbeat_s == around_now()
    store.finish(job, "{}")
    assert [worker.is_busy for worker in registry.alive()] == [False]
    assert [task.state for task in registry.claims(10).latest] == [JobState.COMPLETED]


def test_statistics(registry: WorkerRegistry, store: JobStore) -> None:
    assert (registry.statistics().total, registry.statistics().average_s) == (0, 0)
    for index in range(4):
        store.submit([NewJob(str(index), "a", "{}")])
    for index in range(3):
        job = store.claim("w")
        assert job is not None
        time.sleep(0.05)
        store.finish(job, "{}") if index else store.fail(job, "no", "x")
    again = store.claim("w")
    assert again is not None
    store.release(again, "later")  # not a failed attempt
    again = store.claim("w")
    assert again is not None
    assert registry.statistics().retried == 0
    store.retry(again, "no", "x")
    found = registry.statistics()
    assert (found.total, found.completed, found.failed, found.retried) == (4, 2, 1, 1)
    assert found.average_s > 0


def test_nothing_is_forgotten_while_messages_are_young_or_everybody_is_busy(
    registry: WorkerRegistry, store: JobStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    untaken = "streaming_server.jobs.worker_registry._UNTAKEN_S"
    monkeypatch.setattr(untaken, 600.0)
    registry.beat("w", None, {}, is_busy=False)
    chain(store, "a")
    assert registry.take_unsent() == []
    clock.advance(601)
    assert registry.take_unsent() == [("workflow_1_0", "a", "workflow_1")]
    assert registry.take_unsent() == []
    assert store.claim("w") is not None
    chain(store, "b", workflow_id="workflow_2")
    monkeypatch.setattr(untaken, 0.0)
    assert registry.take_unsent() == []


def test_as_many_are_sent_again_as_workers_are_idle(
    registry: WorkerRegistry, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming_server.jobs.worker_registry._UNTAKEN_S", 0.0)
    for index in range(5):
        store.submit([NewJob(str(index), "a", "{}")])
    for name in ("one", "two"):
        registry.beat(name, None, {}, is_busy=False)
    time.sleep(0.02)
    assert [job_id for job_id, _, _ in registry.take_unsent()] == ["0", "1"]


def test_what_a_dead_worker_had_is_sent_again_once(registry: WorkerRegistry, store: JobStore, clock: Clock) -> None:
    chain(store, "a")
    held = store.claim("dead")
    assert held is not None
    assert registry.take_unsent() == []
    clock.advance(LEASE_S * 1.2)
    found: list[str] = []
    together(4, lambda _: found.extend(job_id for job_id, _, _ in registry.take_unsent()))
    assert found == ["workflow_1_0"]
    assert states(store) == ["pending"]
    with pytest.raises(LeaseLost):
        store.finish(held, "{}")


def test_a_workflow_is_forgotten_as_a_whole(store: JobStore) -> None:
    accepted = chain(store, "a", "b")
    for left in (accepted, []):
        job = store.claim("w")
        assert job is not None
        store.finish(job, "{}")
        forgotten = store.delete_ended(0)
        assert len(store.chain("workflow_1")) == len(left)
    assert sorted(forgotten) == [job.id for job in accepted]
