"""``GET /debug/streams``: the live streams and their state."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from starlette.datastructures import Address
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from typing_extensions import TypedDict

from streaming_server.api.http import Dialect
from streaming_server.api.operations import Answer, ApiRoute, Operation, Tag, described
from streaming_server.errors import LoopbackOnly
from streaming_server.speech.service import SpeechService
from streaming_server.speech.stream import SpeechStream


@described
class LiveStream(TypedDict):
    request_id: str
    """The `X-Request-Id` of the request that opened it, or the id of the task."""
    kind: str
    """`live` or `job`."""
    state: str
    """`queued`, `synthesising`, `awaiting_text` (an incremental text whose next segment has not arrived), `draining`
    (the synthesis has ended and audio is still unsent) or `kept` (without a reader, for resuming)."""
    age_seconds: float
    voice: str
    characters: int
    media_type: str
    queue_position: int
    """Position in the queue at arrival; 0 if the slot was free."""
    wait_seconds: float | None
    """Wait for the slot."""
    first_audio_seconds: float | None
    audio_seconds: float
    """Audio synthesised so far."""
    underruns: int
    """Times at which a client that plays the audio as it is sent had nothing left to play; 0 for a task."""
    unencoded_seconds: float
    """Audio that waits for the encoder."""
    unsent_bytes: int
    kept_bytes: int
    """Sent bytes that are kept for resuming."""


@described
class LiveStreams(TypedDict):
    streams: list[LiveStream]
    """Oldest first."""
    encoder_waiters: int
    """Number of streams that wait for an encoder thread."""
    unsent_bytes: int
    """Unsent bytes of all streams."""


_TAG = Tag("Debug", "The inside of a running server.")
_STREAMS = Operation(
    "The live streams",
    [Answer("All streams and their state, without their texts.", LiveStreams)],
    refusals=(403,),
    description="Requires an API key if keys are set; otherwise only direct requests from this machine are allowed.",
)


@dataclass(frozen=True, slots=True)
class DebugRoutes(Dialect):
    """The debug route of one service."""

    service: SpeechService
    has_keys: bool
    """Whether `ApiKeys` checks requests."""

    def routes(self) -> list[BaseRoute]:
        return [ApiRoute("/debug/streams", self.streams, _TAG, _STREAMS)]

    async def streams(self, request: Request) -> Response:
        if not self.has_keys and not _is_local(request):
            raise LoopbackOnly
        body: LiveStreams = {
            "streams": [_described(stream) for stream in self.service.streams],
            "encoder_waiters": self.service.encoder_waiters,
            "unsent_bytes": self.service.budget.unsent_bytes,
        }
        return JSONResponse(body, headers={"Cache-Control": "no-store"})


def _is_local(request: Request) -> bool:
    """Whether a request comes directly from this machine: not through a proxy, and not from a page of another site."""
    if {"forwarded", "x-forwarded-for", "origin"} & set(request.headers):
        return False
    match request.client:
        case Address(host=host):
            address = ip_address(host)
            return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return True  # a Unix socket


def _described(stream: SpeechStream) -> LiveStream:
    request, stats = stream.request, stream.stats
    return {
        "request_id": request.request_id,
        "kind": "job" if stream.is_batch else "live",
        "state": stream.state,
        "age_seconds": round(stream.age_s, 3),
        "voice": request.voice.name,
        "characters": stats.characters,
        "media_type": stream.media_type,
        "queue_position": stats.position,
        "wait_seconds": stats.wait_s,
        "first_audio_seconds": stats.first_audio_s,
        "audio_seconds": round(stats.audio_s, 3),
        "underruns": 0 if stream.is_batch else stats.underruns,
        "unencoded_seconds": round(stream.unencoded_s, 3),
        "unsent_bytes": stream.buffer.unsent_bytes,
        "kept_bytes": stream.buffer.kept_bytes,
    }
