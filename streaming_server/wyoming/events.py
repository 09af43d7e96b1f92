"""Reads and writes events of the protocol: a line of JSON, data and payload, with size limits."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from wyoming.event import Event, async_write_event

from streaming_server.errors import InvalidRequest, SpeechServerError

MAX_LINE_BYTES = 64 * 1024
MAX_DATA_BYTES = 128 * 1024
_MAX_PAYLOAD_BYTES = 1024 * 1024
"""Maximum size of the payload of audio events, which the server discards."""


class MalformedEvent(SpeechServerError):
    """Invalid data, after which the start of the next event is unknown."""

    code = "malformed_event"


async def read_event(reader: asyncio.StreamReader) -> Event | None:
    """Read the next event without its payload; None at the end of the connection.

    Raises:
        MalformedEvent: the event is invalid or exceeds the limits.
        InvalidRequest: its data is not a JSON object; the next event can be read.
    """
    try:
        line = await reader.readline()
        if not line:
            return None
        head = _object(line)
        kind = head.get("type")
        if not isinstance(kind, str):
            raise MalformedEvent("the event has no type")
        data_bytes = await _read(reader, head, "data_length", MAX_DATA_BYTES)
        await _read(reader, head, "payload_length", _MAX_PAYLOAD_BYTES)
    except asyncio.IncompleteReadError:
        return None
    except ValueError:  # longer than the reader's limit, or not JSON
        limit = MAX_LINE_BYTES // 1024
        raise MalformedEvent(f"the header is not a line of JSON of at most {limit} KiB") from None
    try:
        data = {**_object(json.dumps(head.get("data") or {}).encode()), **(_object(data_bytes) if data_bytes else {})}
    except ValueError:
        raise InvalidRequest(f"the data of {kind[:80]} is not a JSON object", "data") from None
    return Event(kind, data)


async def write_event(event: Event, writer: asyncio.StreamWriter) -> None:
    """Send an event.

    Raises:
        ConnectionError: the client has disconnected.
    """
    await async_write_event(event, writer)


def _object(text: bytes) -> dict[str, Any]:
    """
    Raises:
        ValueError: not a JSON object.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("too many levels") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


async def _read(reader: asyncio.StreamReader, head: dict[str, Any], field: str, limit: int) -> bytes:
    size = head.get(field) or 0
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= limit:
        raise MalformedEvent(f"{field} must be an integer from 0 to {limit}")
    return await reader.readexactly(size)
