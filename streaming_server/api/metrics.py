"""``GET /metrics``, in Prometheus' text format."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from streaming_server.api.http import Dialect
from streaming_server.api.operations import Answer, ApiRoute, Operation, Tag
from streaming_server.ops.metrics import MEDIA_TYPE, Metrics

_TAG = Tag("Metrics", "The server's metrics.")
_METRICS = Operation("All metrics", [Answer("Prometheus' text format.", None, ["text/plain"])])


@dataclass(frozen=True, slots=True)
class MetricsRoute(Dialect):
    """The metrics route of one server."""

    metrics: Metrics

    def routes(self) -> list[BaseRoute]:
        return [ApiRoute("/metrics", self.read, _TAG, _METRICS)]

    async def read(self, request: Request) -> Response:
        text = await asyncio.to_thread(self.metrics.text)  # counting jobs blocks on the database
        return Response(text, media_type=MEDIA_TYPE)
