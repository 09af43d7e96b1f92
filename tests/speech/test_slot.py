from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from streaming_server.errors import QueueFull, QueueTimeout
from streaming_server.speech.priority_semaphore import PrioritySemaphore
from streaming_server.speech.slot import Slot

pytestmark = pytest.mark.anyio


async def hold(slot: Slot, name: str, order: list[str], seconds: float = 0.0) -> None:
    async with slot.enter(name, None, name):
        order.append(name)
        await asyncio.sleep(seconds)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_who_wait_enter_in_the_order_of_arrival() -> None:
    slot, order = Slot(32, 600), list[str]()
    await asyncio.gather(*(hold(slot, str(number), order) for number in range(20)))
    assert order == [str(number) for number in range(20)]


async def test_status_names_the_holder_and_counts_those_who_wait() -> None:
    slot = Slot(32, 600)
    assert (slot.status().holder, slot.status().waiting) == (None, ())
    async with slot.enter("first", 3):
        waiting = asyncio.create_task(hold(slot, "second", []))
        await settle()
        holder = slot.status().holder
        assert holder is not None
        assert (holder.text, holder.reference_audio_index, slot.status().waiting) == ("first", 3, ("second",))
    await waiting
    assert (slot.status().holder, slot.status().waiting) == (None, ())


async def test_a_full_queue_refuses_at_once() -> None:
    slot, order = Slot(2, 600), list[str]()
    async with slot.enter("holder", None):
        waiting = [asyncio.create_task(hold(slot, name, order)) for name in "ab"]
        await settle()
        with pytest.raises(QueueFull, match="2 requests"):
            await hold(slot, "c", order)
    await asyncio.gather(*waiting)
    assert order == ["a", "b"]


async def test_a_queue_of_none_lets_in_whoever_finds_the_slot_free() -> None:
    slot, order = Slot(0, 600), list[str]()
    await hold(slot, "a", order)
    async with slot.enter("b", None):
        with pytest.raises(QueueFull):
            await hold(slot, "c", order)
    await hold(slot, "d", order)
    assert order == ["a", "d"]


async def test_a_wait_ends_after_its_time_and_leaves_no_place_behind() -> None:
    slot = Slot(2, 0.02)
    async with slot.enter("holder", None):
        with pytest.raises(QueueTimeout, match=r"0\.02 s"):
            await hold(slot, "late", [])
        assert slot.status().waiting == ()
    await hold(slot, "next", [])


async def test_who_leaves_while_waiting_loses_the_place_at_once() -> None:
    slot, order = Slot(1, 600), list[str]()
    async with slot.enter("holder", None):
        leaving = asyncio.create_task(hold(slot, "leaving", order))
        await settle()
        leaving.cancel()
        await settle()
        assert slot.status().waiting == ()
        staying = asyncio.create_task(hold(slot, "staying", order))
        await settle()
    await staying
    assert order == ["staying"]


async def test_the_slot_survives_any_mixture_of_leaving_and_failing() -> None:
    chance = random.Random(4)
    slot = Slot(1000, 600)
    inside = 0

    async def client() -> None:
        nonlocal inside
        async with slot.enter("", None):
            inside += 1
            assert inside == 1
            try:
                await asyncio.sleep(chance.choice([0, 0, 0.0005]))
                if chance.random() < 0.2:
                    raise ValueError
            finally:
                inside -= 1

    tasks = []
    for _ in range(500):
        tasks.append(asyncio.create_task(client()))
        await asyncio.sleep(0)
        for task in chance.sample(tasks, min(len(tasks), 2)):
            if chance.random() < 0.2:
                task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (slot.status().holder, slot.status().waiting) == (None, ())
    await hold(slot, "next", [])


async def test_a_turn_that_comes_while_its_taker_is_cancelled_goes_to_the_next() -> None:
    turnstile = PrioritySemaphore(1)
    await turnstile.acquire()
    first, second = (asyncio.create_task(turnstile.acquire()) for _ in range(2))
    await settle()
    turnstile.release()
    first.cancel()
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert second.done()
    assert not second.cancelled()


async def test_the_lowest_priority_value_goes_first() -> None:
    turnstile, order = PrioritySemaphore(1), list[float]()

    async def take(priority: float) -> None:
        await turnstile.acquire(priority)
        order.append(priority)
        turnstile.release()

    await turnstile.acquire()
    tasks = [asyncio.create_task(take(priority)) for priority in (3.0, 1.0, 2.0, 0.0)]
    await settle()
    turnstile.release()
    await asyncio.gather(*tasks)
    assert order == [0.0, 1.0, 2.0, 3.0]


async def test_a_turn_is_not_given_to_one_who_has_just_been_cancelled() -> None:
    turnstile = PrioritySemaphore(1)
    await turnstile.acquire()
    first, second = (asyncio.create_task(turnstile.acquire()) for _ in range(2))
    await settle()
    first.cancel()
    turnstile.release()
    await asyncio.wait([first, second], timeout=180)
    assert first.cancelled()
    assert second.done()
    turnstile.release()
    assert turnstile.is_open


class Clock:
    """Stands for the module `time`."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("streaming_server.speech.slot.time", clock)
    return clock


async def speak(slot: Slot, clock: Clock, characters: int, seconds: float) -> None:
    async with slot.enter("a" * characters, None):
        clock.now_s += seconds


async def test_the_expected_wait_is_that_of_the_characters_that_wait(clock: Clock) -> None:
    slot = Slot(32, 600)
    assert slot.expected_wait_s(slot.position_of_newcomer) == 0
    for _ in range(40):
        await speak(slot, clock, 1000, 10)
        await speak(slot, clock, 1, 0.01)
    async with slot.enter("a" * 500, None):
        waiting = [asyncio.create_task(hold(slot, "a" * length, [])) for length in (100, 2000)]
        await settle()
        clock.now_s += 2
        waits = [slot.expected_wait_s(position) for position in (1, 2, 3)]
        assert waits == pytest.approx([3, 4, 24], rel=1e-3)
        clock.now_s += 100
        assert slot.expected_wait_s(2) == pytest.approx(1, rel=1e-3)
    await asyncio.gather(*waiting)


async def test_a_wait_that_is_too_long_is_refused_by_a_measured_speed_only(clock: Clock) -> None:
    slot = Slot(32, 600)
    async with slot.enter("a" * 10_000, None):
        slot.check_wait(25)
        clock.now_s += 5_000
    async with slot.enter("a" * 100, None):
        slot.check_wait(51)
        with pytest.raises(QueueTimeout, match="within 49 s"):
            slot.check_wait(49)


async def test_a_synthesis_that_was_cut_short_tells_nothing_about_the_speed(clock: Clock) -> None:
    slot = Slot(32, 600)
    for _ in range(40):
        await speak(slot, clock, 1000, 10)
    with pytest.raises(ValueError, match="left"):
        async with slot.enter("a" * 10**6, None):
            raise ValueError("left")
    async with slot.enter("a" * 100, None):
        assert slot.expected_wait_s(1) == pytest.approx(1, rel=1e-3)


async def test_the_status_can_leave_the_text_out() -> None:
    slot = Slot(32, 600, shows_text=False)
    async with slot.enter("secret", 3):
        holder = slot.status().holder
        assert holder is not None
        assert (holder.text, holder.reference_audio_index) == ("", 3)


# Several holders


async def test_as_many_enter_as_there_are_places_and_the_rest_in_order() -> None:
    slot, order = Slot(32, 600, capacity=2), list[str]()

    async def run_job() -> None:
        async with slot.enter("job", None, "job", batch=True):
            order.append("job")

    async with slot.enter("first", None), slot.enter("second", None):
        assert [holder.text for holder in slot.status().holders] == ["first", "second"]
        waiting = [asyncio.create_task(hold(slot, name, order)) for name in "ab"]
        waiting.append(asyncio.create_task(run_job()))
        await settle()
        waiting.append(asyncio.create_task(hold(slot, "c", order)))
        await settle()
        assert slot.status().waiting == ("a", "b", "c", "job")
        assert order == []
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "c", "job"]


async def test_one_who_has_no_room_waits_until_another_leaves(clock: Clock) -> None:
    """The first holder enters whatever is measured, and nobody overtakes who waits for room."""
    room = {"for": 0}
    slot, order = Slot(32, 600, capacity=3, has_room=lambda active: active < room["for"]), list[str]()
    async with slot.enter("first", None):
        assert (slot.position_of_newcomer, slot.accepted) == (1, 1)
        assert not slot.status().is_open
        waiting = [asyncio.create_task(hold(slot, name, order)) for name in "ab"]
        await settle()
        assert slot.expected_wait_s(3) - slot.expected_wait_s(2) == pytest.approx(1 / 50)  # "b", one after another
        room["for"] = 3
        assert not slot.status().is_open
        assert (slot.position_of_newcomer, slot.accepted) == (3, 3)
        waiting.append(asyncio.create_task(hold(slot, "c", order)))
        await settle()
        assert order[:2] == ["a", "b"]
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "c"]


async def test_one_who_waits_for_room_enters_when_the_others_have_become_faster() -> None:
    room = {"for": 1}
    slot, order = Slot(32, 600, capacity=3, has_room=lambda active: active < room["for"]), list[str]()
    async with slot.enter("first", None):
        waiting = [asyncio.create_task(hold(slot, name, order)) for name in "ab"]
        await settle()
        slot.reconsider()
        await settle()
        assert order == []
        room["for"] = 2
        slot.reconsider()
        await asyncio.gather(*waiting)
    assert order == ["a", "b"]


async def test_a_wait_is_shared_by_the_places() -> None:
    expected = []
    for capacity in (1, 2):
        slot = Slot(32, 600, capacity=capacity)
        async with AsyncExitStack() as holders:
            for _ in range(capacity):
                await holders.enter_async_context(slot.enter("x" * 1000, None))
            waiting = [asyncio.create_task(hold(slot, "y" * 4000, [])) for _ in range(2)]
            await settle()
            expected.append(slot.expected_wait_s(3))
        await asyncio.gather(*waiting)
    assert expected[1] < 0.7 * expected[0]
