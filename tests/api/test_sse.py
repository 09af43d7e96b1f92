"""Server-sent events: format and keep-alive comments."""

from __future__ import annotations

import asyncio
import json

import pytest

from streaming_server.api import sse


def test_an_event_is_one_line_of_json_for_every_client() -> None:
    """Some clients also divide lines where `str.splitlines` does."""
    content = {"type": "done", "text": "一\n二\u2028三"}
    line, blank = sse.event(content).decode().splitlines()
    assert (json.loads(line.removeprefix("data: ")), blank) == (content, "")


def test_comments_are_written_until_there_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.001)
    written: list[bytes] = []
    enough = asyncio.Event()

    async def write(content: bytes) -> None:
        written.append(content)
        if len(written) == 3:
            enough.set()

    async def piece() -> bytes:
        await enough.wait()
        return b"piece"

    assert asyncio.run(sse.kept_alive(piece(), write)) == b"piece"
    assert set(written) == {sse.KEEP_ALIVE}
    assert sse.KEEP_ALIVE.startswith(b":")


def test_leaving_ends_what_is_waited_for() -> None:
    ended = False

    async def piece() -> bytes:
        nonlocal ended
        try:
            return await asyncio.Future()
        finally:
            ended = True

    async def write(content: bytes) -> None:
        pass

    async def left() -> None:
        waiting = asyncio.ensure_future(sse.kept_alive(piece(), write))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await asyncio.sleep(0)

    asyncio.run(left())
    assert ended
