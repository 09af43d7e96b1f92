"""The idle time of a WebSocket session."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message
from starlette.websockets import WebSocket

from streaming_server.api.channel import Channel
from streaming_server.api.record import RequestRecord
from streaming_server.errors import SessionTimeout

pytestmark = pytest.mark.anyio
IDLE_S = 0.4


async def test_the_idle_time_begins_anew_with_each_message_that_is_sent() -> None:
    async def was_sent_while_waiting() -> bool:
        channel = await accepted()
        waiting = asyncio.create_task(channel.receive(IDLE_S))
        await asyncio.sleep(IDLE_S / 2)
        sent_s, was_waiting = asyncio.get_running_loop().time(), not waiting.done()
        await channel.send(b"audio")
        with pytest.raises(SessionTimeout):
            await waiting
        assert not was_waiting or asyncio.get_running_loop().time() >= sent_s + IDLE_S
        return was_waiting

    async with asyncio.timeout(180):
        while not await was_sent_while_waiting():
            pass


async def accepted() -> Channel:
    async def receive() -> Message:
        if opening:
            return opening.pop()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(_: Any) -> None:
        pass

    opening: list[Message] = [{"type": "websocket.connect"}]
    record = RequestRecord("WEBSOCKET", "/")
    channel = Channel(WebSocket({"type": "websocket"}, receive, send), 180, record, is_busy=lambda: False)
    await channel.accept()
    return channel
