from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from streaming_server.engines.threads import WAITING, Cancelled, Check, Emit, OwnerThread, Steps, in_turns
from streaming_server.engines.urgency import UrgentFirst

pytestmark = pytest.mark.anyio


@pytest.fixture
async def owner() -> AsyncIterator[OwnerThread]:
    thread = OwnerThread("test-owner")
    yield thread
    await thread.aclose()
    assert not any(alive.name == "test-owner" for alive in threading.enumerate())


async def test_items_arrive_in_order_and_all(owner: OwnerThread) -> None:
    def produce(emit: Emit[int]) -> None:
        assert all(emit(number) for number in range(10_000))

    assert [item async for item in owner.iterate(produce, limit=7)] == list(range(10_000))


async def test_the_producer_waits_for_its_reader(owner: OwnerThread) -> None:
    made: list[int] = []

    def produce(emit: Emit[int]) -> None:
        for number in range(100):
            made.append(number)
            emit(number)

    async with aclosing(owner.iterate(produce, limit=4)) as items:
        await anext(items)
        await asyncio.sleep(0.05)
        assert len(made) <= 1 + 4 + 4 + 1


async def test_closing_stops_the_producer_and_waits_for_it(owner: OwnerThread) -> None:
    ended = threading.Event()

    def produce(emit: Emit[int]) -> None:
        while emit(0):
            pass
        time.sleep(0.05)
        ended.set()

    items = owner.iterate(produce)
    await anext(items)
    await items.aclose()
    assert ended.is_set()


async def test_cancelling_waits_for_the_producer_too(owner: OwnerThread) -> None:
    begun, ended = threading.Event(), threading.Event()

    def produce(emit: Emit[int]) -> None:
        begun.set()
        emit(0)
        time.sleep(0.05)
        ended.set()

    async def consume() -> None:
        async with aclosing(owner.iterate(produce)) as items:
            async for _ in items:
                await asyncio.sleep(10)

    task = asyncio.create_task(consume())
    assert await asyncio.to_thread(begun.wait, 180)
    task.cancel()
    await asyncio.wait([task])
    assert ended.is_set()


async def test_what_waits_behind_another_can_be_given_up_unbegun(owner: OwnerThread) -> None:
    release = threading.Event()
    begun: list[int] = []
    first = asyncio.create_task(owner.call(release.wait))
    second: AsyncGenerator[int, None] = owner.iterate(lambda emit: begun.append(1))
    reading = asyncio.ensure_future(anext(second, None))
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.sleep(0.01)
    release.set()
    await asyncio.wait([reading, first])
    assert begun == []


async def test_an_exception_comes_after_the_items_before_it(owner: OwnerThread) -> None:
    def produce(emit: Emit[int]) -> None:
        emit(1)
        raise KeyError("broken")

    items = owner.iterate(produce)
    assert await anext(items) == 1
    with pytest.raises(KeyError, match="broken"):
        await anext(items)
    assert await owner.call(lambda: threading.current_thread().name) == "test-owner"
    with pytest.raises(ZeroDivisionError):
        await owner.call(lambda: 1 // 0)


async def test_a_fast_producer_does_not_starve_the_loop(owner: OwnerThread) -> None:
    ticked = threading.Event()

    def produce(emit: Emit[int]) -> None:
        while not ticked.is_set() and emit(0):
            pass

    async def read() -> None:
        async for _ in owner.iterate(produce):
            pass

    reading = asyncio.create_task(read())
    for _ in range(10):
        await asyncio.sleep(0.005)
    assert not reading.done()
    ticked.set()
    await reading


# Generators that share the thread


@pytest.fixture
async def shared() -> AsyncIterator[tuple[OwnerThread, list[str]]]:
    """An owner thread, and what its common step and its generators did."""
    done: list[str] = []

    def step() -> bool:
        done.append("step")
        return False

    thread = OwnerThread("test-owner", step)
    yield thread, done
    await thread.aclose()


async def test_generators_take_turns_with_a_common_step_after_each_round(shared: tuple[OwnerThread, list[str]]) -> None:
    thread, done = shared
    both_there = threading.Event()

    def count(name: str, check: Check) -> Steps[str]:
        if name == "b":
            both_there.set()
        while not both_there.is_set():
            yield WAITING
        for number in range(3):
            done.append(name)
            yield f"{name}{number}"

    async def read(name: str) -> list[str]:
        return [item async for item in thread.interleave(lambda check: count(name, check))]

    first = asyncio.create_task(read("a"))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(read("b"))
    thread.wake()
    assert await first == ["a0", "a1", "a2"]
    assert await second == ["b0", "b1", "b2"]
    turns = "".join("|" if entry == "step" else entry for entry in done)
    assert turns.count("ab") == 2
    assert "aa" not in turns
    assert "bb" not in turns


async def test_a_generator_that_nobody_reads_stops_and_the_others_go_on(shared: tuple[OwnerThread, list[str]]) -> None:
    thread, _ = shared
    made: list[int] = []

    def endless(check: Check) -> Steps[int]:
        for number in range(10**6):
            made.append(number)
            yield number

    def short(check: Check) -> Steps[int]:
        yield from range(200)

    async with aclosing(thread.interleave(endless, limit=4)) as slow:
        await anext(slow)
        assert [item async for item in thread.interleave(short, limit=7)] == list(range(200))
        assert len(made) <= 2 * 4 + 1
        for expected in range(1, 30):
            assert await anext(slow) == expected


async def test_closing_closes_the_generator_while_it_waits(shared: tuple[OwnerThread, list[str]]) -> None:
    thread, _ = shared
    closed = threading.Event()

    def waiting(check: Check) -> Steps[int]:
        try:
            yield 1
            while True:
                yield WAITING
        finally:
            closed.set()

    items = thread.interleave(waiting)
    assert await anext(items) == 1
    await items.aclose()
    assert closed.is_set()


async def test_an_error_ends_its_generator_and_one_of_the_common_step_all_of_them() -> None:
    fails = threading.Event()

    def step() -> bool:
        if fails.is_set():
            raise ZeroDivisionError
        return False

    thread = OwnerThread("test-owner", step)

    def waiting(check: Check) -> Steps[int]:
        while True:
            yield WAITING

    def broken(check: Check) -> Steps[int]:
        yield 1
        raise KeyError("x")

    async def read() -> None:
        async for _ in thread.interleave(waiting):
            pass

    readers = [asyncio.create_task(read()) for _ in range(2)]
    with pytest.raises(KeyError):
        async for _ in thread.interleave(broken):
            pass
    assert not any(reader.done() for reader in readers)
    fails.set()
    thread.wake()
    for reader in readers:
        with pytest.raises(ZeroDivisionError):
            await reader
    await thread.aclose()


async def test_work_with_checks_is_done_in_turns() -> None:
    done: list[int] = []

    def work(check: Check) -> str:
        for number in range(3):
            done.append(number)
            check()
        return "result"

    turns = in_turns(work, "test-turns")
    for number in range(3):
        assert next(turns) is None
        assert done == [*range(number + 1)]
    with pytest.raises(StopIteration) as end:
        next(turns)
    assert end.value.value == "result"
    with pytest.raises(ZeroDivisionError):
        next(in_turns(lambda _: 1 // 0, "test-turns"))


async def test_closing_cancels_work_in_turns_at_its_check() -> None:
    seen: list[type[Exception]] = []

    def work(check: Check) -> None:
        for _ in range(2):
            try:
                check()
            except Cancelled:
                seen.append(Cancelled)
        check()

    turns = in_turns(work, "test-turns")
    next(turns)
    turns.close()
    assert seen == [Cancelled, Cancelled]
    assert not any(alive.name == "test-turns" and alive.is_alive() for alive in threading.enumerate())


# By urgency


async def test_who_runs_out_goes_on_before_those_without_items_and_they_before_the_others() -> None:
    thread = OwnerThread("test-owner", duration_s=lambda item: item)
    begun, there, done = threading.Event(), list[str](), list[str]()

    def items(name: str, *durations_s: float) -> Steps[float]:
        there.append(name)
        while not begun.is_set():
            yield WAITING
        for duration_s in durations_s:
            done.append(name)
            yield duration_s

    async def read(name: str, *durations_s: float) -> None:
        async for _ in thread.interleave(lambda check: items(name, *durations_s)):
            pass

    given = ("a", 2000, 2000, 2000), ("b", 3000, 1), ("c", 0, 0, 5000, 1)
    readers = [asyncio.create_task(read(*each)) for each in given]
    while len(there) < len(given):
        await asyncio.sleep(0.001)
    await thread.call(begun.set)
    await asyncio.gather(*readers)
    await thread.aclose()
    assert "".join(done) == "abcccabac"


async def test_one_without_a_listener_is_closed_before_others_go_on() -> None:
    thread = OwnerThread("test-owner", duration_s=lambda item: item)
    goes_on = threading.Event()
    made_when_closed = 0

    def endless(check: Check) -> Steps[float]:
        nonlocal made_when_closed
        try:
            yield 1000
            while True:
                yield WAITING
        finally:
            made_when_closed = len(made)

    made: list[int] = []

    def urgent(check: Check) -> Steps[float]:
        for number in range(20):
            if number:
                goes_on.wait(180)
            made.append(number)
            yield 0

    async def read() -> None:
        async for _ in thread.interleave(urgent):
            pass

    leaving = thread.interleave(endless)
    await anext(leaving)
    reading = asyncio.create_task(read())
    while not made:
        await asyncio.sleep(0.001)
    closing = asyncio.create_task(leaving.aclose())
    await asyncio.sleep(0)
    goes_on.set()
    await closing
    await reading
    await thread.aclose()
    assert made_when_closed <= 3


async def test_the_most_urgent_function_runs_next_and_a_cancelled_one_does_not() -> None:
    thread = UrgentFirst("test-urgent")
    begun, done = threading.Event(), list[str]()
    now_s = time.monotonic()
    thread.submit(0, begun.wait, 180)
    needed = {"late": now_s + 3000, "new": 0, "left": 0, "later": now_s + 5000, "soon": now_s + 0.01, "newer": 0}
    futures = {name: thread.submit(needed_s, done.append, name) for name, needed_s in needed.items()}
    assert futures["left"].cancel()
    begun.set()
    thread.close()
    assert done == ["soon", "new", "newer", "late", "later"]


async def test_an_error_of_a_function_is_that_of_its_result() -> None:
    thread = UrgentFirst("test-urgent")
    with pytest.raises(ZeroDivisionError):
        await asyncio.wrap_future(thread.submit(0, lambda: 1 // 0))
    thread.close()
