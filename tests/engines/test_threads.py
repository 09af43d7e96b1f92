from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from streaming_server.engines.threads import Emit, OwnerThread

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
    ended = threading.Event()

    def produce(emit: Emit[int]) -> None:
        emit(0)
        time.sleep(0.05)
        ended.set()

    async def consume() -> None:
        async with aclosing(owner.iterate(produce)) as items:
            async for _ in items:
                await asyncio.sleep(10)

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.02)
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
