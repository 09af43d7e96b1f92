"""The native routes for the queue, and for resuming streams of all dialects."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from streaming_server.api import sse
from streaming_server.api.http import KEY_HEADERS, Dialect, head_response, parse_query
from streaming_server.api.native.queue_schemas import (
    DISCARD,
    EVENTS,
    RESUME,
    STATUS,
    TAG,
    QueueEvent,
    QueueStatus,
    StatusQuery,
    Waiting,
)
from streaming_server.api.operations import ApiRoute
from streaming_server.api.responses import ResumedResponse
from streaming_server.errors import InvalidRequest
from streaming_server.settings import Settings
from streaming_server.speech.service import SpeechService
from streaming_server.speech.slot import Slot, SlotStatus
from streaming_server.text import preview

if TYPE_CHECKING:
    from streaming_server.api.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Queue(Dialect):
    """The queue and stream routes of one service."""

    service: SpeechService
    settings: Settings
    fleet: Fleet | None
    """All servers behind the gateway; None for a single server."""

    def routes(self) -> list[BaseRoute]:
        return [
            ApiRoute("/opus_queue_status", self.opus_queue_status, TAG, STATUS),
            ApiRoute("/opus_queue_status/events", self.opus_queue_events, TAG, EVENTS),
            ApiRoute("/streams/{stream_id}", self.resume, TAG, RESUME),
            ApiRoute("/streams/{stream_id}", self.discard, TAG, DISCARD, methods=["DELETE"]),
        ]

    async def resume(self, request: Request) -> Response | ResumedResponse:
        stream_id = request.path_params["stream_id"]
        if request.method == "HEAD":
            async with self.service.resume(stream_id) as stream:
                return head_response(stream.media_type, {"X-Stream-Id": stream_id, "Accept-Ranges": "bytes"})
        position, last, by_range = _resume_position(request)
        timeout_s = self.settings.send_timeout_s
        return ResumedResponse(self.service, stream_id, position, timeout_s, by_range=by_range, last=last)

    async def discard(self, request: Request) -> Response:
        await self.service.discard(request.path_params["stream_id"])
        return Response(status_code=204)

    async def opus_queue_status(self, request: Request) -> Response:
        if not parse_query(request, StatusQuery).fleet:
            return JSONResponse(_queue_status(self.service.slot.status()))
        if self.fleet is None:
            message = "fleet must be 0: this server has no other servers configured, because FLEET is not set"
            raise InvalidRequest(message, "fleet", "query")
        keys = {name: request.headers[name] for name in ("authorization", *KEY_HEADERS) if name in request.headers}
        return JSONResponse(await self.fleet.status(keys))

    async def opus_queue_events(self, request: Request) -> Response:
        if request.method == "HEAD":
            return head_response(sse.MEDIA_TYPE, sse.HEADERS)
        ending = request.scope["state"].get("ending") or asyncio.Event()
        return StreamingResponse(self._queue_events(ending), media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)

    async def _queue_events(self, ending: asyncio.Event) -> AsyncIterator[bytes]:
        slot = self.service.slot
        end = asyncio.ensure_future(ending.wait())
        change = asyncio.ensure_future(slot.change())
        try:
            yield _queue_event(slot)
            while not end.done():
                await asyncio.wait([change, end], timeout=sse.KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if change.done():
                    change = asyncio.ensure_future(slot.change())
                    # Starts the response first: changes before the subscription would be missed.
                    await asyncio.sleep(0)
                    yield _queue_event(slot)
                elif not end.done():
                    yield sse.KEEP_ALIVE
        finally:
            end.cancel()
            change.cancel()


def _queue_event(slot: Slot) -> bytes:
    """`_queue_status` with the waiting requests and the expected waits."""
    status = slot.status()
    queue: list[Waiting] = [
        {
            "request_id": request_id,
            "position": position,
            "expected_wait_seconds": round(slot.expected_wait_s(position), 2),
        }
        for position, request_id in enumerate(status.waiting, 1)
    ]
    body: QueueEvent = {**_queue_status(status), "waiting": len(queue), "queue": queue}
    return sse.event(body)


def _queue_status(status: SlotStatus) -> QueueStatus:
    """Return the queue status as `QueueStatus`."""
    holder = status.holder
    now = time.time()
    body: QueueStatus = {
        "is_processing": holder is not None,
        "queue_available": status.is_open,
        "timestamp": now,
    }
    if status.capacity > 1:
        body["active"], body["capacity"] = len(status.holders), status.capacity
    if holder is not None:
        body["current_request"] = {
            "text_preview": preview(holder.text),
            "reference_audio_index": holder.reference_audio_index,
            "processing_duration_seconds": round(max(0.0, now - holder.start_time_s), 2),
            "start_time": holder.start_time_s,
        }
    return body


def _resume_position(request: Request) -> tuple[int, int | None, bool]:
    """Return the first and last byte to send, and whether they come from a ``Range`` header.

    A range with another unit or syntax is ignored (RFC 9110, section 14.2).

    Raises:
        InvalidRequest: ``from`` is not a whole number.
    """
    if found := re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{1,18})?", request.headers.get("range", "").strip()):
        first, last = int(found[1]), int(found[2]) if found[2] else None
        if last is None or last >= first:
            return first, last, True
    text = request.query_params.get("from", "0")
    if not re.fullmatch("[0-9]{1,18}", text):
        raise InvalidRequest("from must be a whole number of bytes, at least 0", "from", "query")
    return int(text), None, False
