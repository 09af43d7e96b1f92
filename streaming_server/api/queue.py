"""The queue and the streams that have left it: ``/opus_queue_status``, its events, ``/streams/{id}``.

Part of the native dialect, true of every dialect's requests. Knows no engine and no format.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from streaming_server.api.responses import ResumedResponse
from streaming_server.core.slot import Slot, SlotStatus
from streaming_server.core.speech import SpeechService
from streaming_server.errors import InvalidRequest
from streaming_server.settings import Settings
from streaming_server.text import preview

_KEEP_ALIVE_S = 15.0


@dataclass(frozen=True, slots=True)
class Queue:
    """The routes over one service."""

    service: SpeechService
    settings: Settings

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/opus_queue_status", self.opus_queue_status),
            Route("/opus_queue_status/events", self.opus_queue_events),
            Route("/streams/{stream_id}", self.resume),
            Route("/streams/{stream_id}", self.discard, methods=["DELETE"]),
        ]

    async def resume(self, request: Request) -> Response | ResumedResponse:
        stream_id = request.path_params["stream_id"]
        if request.method == "HEAD":
            async with self.service.resume(stream_id) as stream:
                return Response(media_type=stream.media_type, headers={"X-Stream-Id": stream_id})
        position, by_range = _resume_position(request)
        timeout_s = self.settings.send_timeout_s
        return ResumedResponse(self.service, stream_id, position, timeout_s, by_range=by_range)

    async def discard(self, request: Request) -> Response:
        await self.service.discard(request.path_params["stream_id"])
        return Response(status_code=204)

    async def opus_queue_status(self, request: Request) -> Response:
        return JSONResponse(_queue_status(self.service.slot.status()))

    async def opus_queue_events(self, request: Request) -> Response:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers=headers)
        ending = request.scope["state"].get("ending") or asyncio.Event()
        return StreamingResponse(self._queue_events(ending), media_type="text/event-stream", headers=headers)

    async def _queue_events(self, ending: asyncio.Event) -> AsyncIterator[str]:
        slot = self.service.slot
        end = asyncio.ensure_future(ending.wait())
        change = asyncio.ensure_future(slot.change())
        try:
            yield _queue_event(slot)
            while not end.done():
                await asyncio.wait([change, end], timeout=_KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if change.done():
                    change = asyncio.ensure_future(slot.change())
                    # Once it is listening: what changes between here and there would be missed.
                    await asyncio.sleep(0)
                    yield _queue_event(slot)
                elif not end.done():
                    yield ": still here\n\n"
        finally:
            end.cancel()
            change.cancel()


def _queue_event(slot: Slot) -> str:
    """The object of `_queue_status`, who waits, and for how long."""
    status = slot.status()
    queue = [
        {
            "request_id": request_id,
            "position": position,
            "expected_wait_seconds": round(slot.expected_wait_s(position), 2),
        }
        for position, request_id in enumerate(status.waiting, 1)
    ]
    body = {**_queue_status(status), "waiting": len(queue), "queue": queue}
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _queue_status(status: SlotStatus) -> dict[str, Any]:
    """The object of the contract."""
    holder = status.holder
    now = time.time()
    body: dict[str, Any] = {
        "is_processing": holder is not None,
        "queue_available": holder is None,
        "timestamp": now,
    }
    if holder is not None:
        body["current_request"] = {
            "text_preview": preview(holder.text),
            "reference_audio_index": holder.reference_audio_index,
            "processing_duration_seconds": round(max(0.0, now - holder.start_time_s), 2),
            "start_time": holder.start_time_s,
        }
    return body


def _resume_position(request: Request) -> tuple[int, bool]:
    """The byte to continue at, and whether a ``Range`` header named it.

    Raises:
        InvalidRequest: neither ``bytes=N-`` nor ``from=N`` with a whole number.
    """
    by_range = "range" in request.headers
    text = request.headers.get("range") or request.query_params.get("from", "0")
    found = re.fullmatch(r"bytes=(\d{1,18})-" if by_range else r"(\d{1,18})", text.strip())
    if not found:
        wanted = "Range must be bytes=N-" if by_range else "from must be a whole number of bytes, at least 0"
        raise InvalidRequest(wanted, "Range" if by_range else "from")
    return int(found[1]), by_range
