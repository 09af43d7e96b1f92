"""Queries, answers and operations of the queue's routes."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from streaming_server.api.http import Body
from streaming_server.api.native.schemas import HealthStatus
from streaming_server.api.operations import Answer, Operation, Parameter, Tag, described

_Byte = Annotated[int, Field(ge=0, default=0)]
TAG = Tag("Queue and streams", "The current and waiting requests, and resuming of interrupted streams.")


@described
class CurrentRequest(TypedDict):
    text_preview: str
    """The first 50 characters of the text."""
    reference_audio_index: int | None
    """Null if the voice is not a file of the reference folder."""
    processing_duration_seconds: float
    start_time: float
    """UNIX seconds."""


@described
class QueueStatus(TypedDict):
    is_processing: bool
    queue_available: bool
    timestamp: float
    """UNIX seconds."""
    current_request: NotRequired[CurrentRequest]
    """The request that has been processed longest; absent while none is."""
    active: NotRequired[int]
    """Number of requests being processed; only where `MAX_CONCURRENT` lets several be."""
    capacity: NotRequired[int]
    """Most requests processed at a time; only where there may be several."""


@described
class Waiting(TypedDict):
    request_id: str
    position: int
    expected_wait_seconds: float


@described
class QueueEvent(QueueStatus):
    waiting: int
    queue: list[Waiting]


@described
class FleetServer(TypedDict):
    url: str
    status: HealthStatus | Literal["unreachable"]
    error: NotRequired[str]
    """Why the server is unreachable; no other fields are known then."""
    is_processing: NotRequired[bool]
    queue_available: NotRequired[bool]
    current_request: NotRequired[CurrentRequest]
    waiting: NotRequired[int]


@described
class FleetStatus(TypedDict):
    is_processing: bool
    """Whether any server is processing a request."""
    queue_available: bool
    """Whether any healthy server is free."""
    timestamp: float
    """UNIX seconds."""
    processing: int
    """Number of servers that are processing a request."""
    waiting: int
    """Number of requests waiting at the servers; requests waiting at the gateway are not included."""
    servers_total: int
    servers_healthy: int
    servers: list[FleetServer]


class StatusQuery(Body):
    fleet: bool = False
    """Return the combined status of all servers in `FLEET`."""


_RESUMED_HEADERS = {"X-Stream-Id": "The stream's name.", "X-Stream-Offset": "The first byte's place in the stream."}
_STREAM_ID = Parameter("stream_id", "path", "The `X-Stream-Id` of a response.")
STATUS = Operation(
    "Get the queue status",
    [Answer("At this moment, here; of the whole fleet with `fleet=1`.", QueueStatus | FleetStatus)],
    takes=StatusQuery,
)
EVENTS = Operation(
    "Stream the queue status",
    [Answer("Each event's `data` is this object, at once and at every change.", QueueEvent, ["text/event-stream"])],
)
RESUME = Operation(
    "Resume an interrupted stream",
    [
        Answer(
            "The stream from that byte on; while it is being made, as it is made.",
            None,
            ["audio/*", "application/octet-stream"],
            _RESUMED_HEADERS,
        ),
        Answer(
            "The rest of a stream that is complete, where `Range` was given.",
            None,
            ["audio/*", "application/octet-stream"],
            {**_RESUMED_HEADERS, "Content-Range": "Its place in the whole."},
            206,
        ),
    ],
    parameters=[
        _STREAM_ID,
        Parameter("Range", "header", "`bytes=N-`: continue at byte N; `bytes=N-M` ends a complete stream at byte M."),
        Parameter("from", "query", "The byte to continue at, for a client that cannot send `Range`.", _Byte),
    ],
    refusals=[404, 416, 422],
)
DISCARD = Operation(
    "Delete a stream", [Answer("The stream is deleted.", None, [], status=204)], parameters=[_STREAM_ID], refusals=[404]
)
