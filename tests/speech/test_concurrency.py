"""``MAX_CONCURRENT`` and the limit of the engine: how many requests run at once, and what a gateway is told."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from streaming_server.audio.encoders import PcmEncoder
from streaming_server.components import create_service
from streaming_server.domain import SpeechRequest
from streaming_server.ops.haproxy_agent import start_agent
from streaming_server.settings import Settings
from streaming_server.speech.service import SpeechService
from tests.support.fakes import FakeEngine, Gate, tone, voice

pytestmark = pytest.mark.anyio


class BatchingEngine(FakeEngine):
    """Has room for two at a time, or what is set, whatever is reserved."""

    reserved = 0
    room = 2

    def reserve(self, requests: int) -> None:
        self.reserved = requests

    def has_room(self, active: int) -> bool:
        return active < self.room


async def told(service: SpeechService) -> str:
    """The line that HAProxy reads."""
    server = await start_agent(service, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        line = await reader.read()
        writer.close()
    return line.decode().strip()


async def running(service: SpeechService, count: int) -> int:
    """How many of so many requests the engine serves at once."""
    async with AsyncExitStack() as streams:
        for number in range(count):
            request = SpeechRequest(f"text {number}", voice())
            await streams.enter_async_context(service.open(request, PcmEncoder()))
        for _ in range(50):
            await asyncio.sleep(0)
        assert isinstance(service.engine, FakeEngine)
        assert len(service.slot.status().holders) == service.engine.running
        return service.engine.running


async def test_an_engine_for_one_at_a_time_limits_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    service = create_service(Settings(max_concurrent=4), FakeEngine(lambda _: [Gate(), tone(0.1)]))
    await service.warm()
    assert "MAX_CONCURRENT=4 limited to 1 by the fake engine" in caplog.text
    assert service.slot.status().capacity == 1
    assert await running(service, 3) == 1
    assert await told(service) == "maxconn:1"
    await service.aclose()


async def test_the_setting_limits_an_engine_for_several() -> None:
    engine = FakeEngine(lambda _: [Gate(), tone(0.1)], max_concurrency=8)
    service = create_service(Settings(max_concurrent=3), engine)
    await service.warm()
    assert await running(service, 2) == 2
    assert await running(service, 5) == 3
    assert await told(service) == "maxconn:3"
    await service.aclose()


async def test_an_engine_without_room_for_more_is_asked_and_told() -> None:
    engine = BatchingEngine(lambda _: [Gate(), tone(0.1)], max_concurrency=8)
    service = create_service(Settings(max_concurrent=4), engine)
    await service.warm()
    assert engine.reserved == 4
    assert await running(service, 4) == 2
    assert await told(service) == "maxconn:4"
    async with AsyncExitStack() as streams:
        for _ in range(2):
            await streams.enter_async_context(service.open(SpeechRequest("text", voice()), PcmEncoder()))
        for _ in range(50):
            await asyncio.sleep(0)
        assert await told(service) == "maxconn:2"
    await service.aclose()


async def test_one_who_waits_enters_beside_a_long_text_once_there_is_room() -> None:
    """The engine measured a slow moment; nobody leaves."""
    faster, end = Gate(), Gate()
    engine = BatchingEngine(lambda _: [tone(0.1), faster, tone(0.1), end], max_concurrency=8)
    engine.room = 1
    service = create_service(Settings(max_concurrent=4), engine)
    await service.warm()
    async with AsyncExitStack() as streams:
        for _ in range(2):
            await streams.enter_async_context(service.open(SpeechRequest("text", voice()), PcmEncoder()))
        while not service.slot.status().waiting:
            await asyncio.sleep(0)
        engine.room = 2
        faster.open()
        async with asyncio.timeout(120):
            while engine.running < 2:
                await asyncio.sleep(0.002)
    await service.aclose()
