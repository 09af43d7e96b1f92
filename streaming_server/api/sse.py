"""Server-sent events, and comments that keep an idle connection open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_S = 15.0
"""Interval of comments: many proxies close a connection that is idle for 30 or 60 seconds."""

T = TypeVar("T")


def event(content: Mapping[str, Any]) -> bytes:
    """Format an event whose data is a JSON object, in ASCII: some clients also divide lines at U+2028 and U+2029."""
    return f"data: {json.dumps(content)}\n\n".encode()


async def kept_alive(
    awaited: Coroutine[Any, Any, T], write: Callable[[bytes], Awaitable[None]], interval_s: float | None = None
) -> T:
    """Await a coroutine and write a comment every ``interval_s`` (`KEEP_ALIVE_S`) meanwhile."""
    task = asyncio.ensure_future(awaited)
    try:
        while not (await asyncio.wait([task], timeout=interval_s or KEEP_ALIVE_S))[0]:
            await write(KEEP_ALIVE)
        return task.result()
    finally:
        task.cancel()
