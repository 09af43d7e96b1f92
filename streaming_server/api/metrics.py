"""``/metrics``: what the server counts, as Prometheus reads it. Knows no number's meaning."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from streaming_server.api.http import Dialect
from streaming_server.api.operations import Answer, ApiRoute, Operation, Tag
from streaming_server.ops.metrics import MEDIA_TYPE, Metrics

_TAG = Tag("Metrics", "What the server counts.")
_METRICS = Operation("All counters", [Answer("Prometheus' text form.", None, ["text/plain"])])


@dataclass(frozen=True, slots=True)
class MetricsRoute(Dialect):
    """The route over one server's metrics."""

    metrics: Metrics

    def routes(self) -> list[BaseRoute]:
        return [ApiRoute("/metrics", self.read, _TAG, _METRICS)]

    async def read(self, request: Request) -> Response:
        text = await asyncio.to_thread(self.metrics.text)  # the jobs are counted in the database
        return Response(text, media_type=MEDIA_TYPE)
