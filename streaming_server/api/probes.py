"""``GET /livez`` and ``GET /readyz``: the probes of an orchestrator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from typing_extensions import TypedDict

from streaming_server.api.http import Dialect
from streaming_server.api.operations import Answer, ApiRoute, Operation, Tag, described
from streaming_server.speech.service import EngineState, SpeechService


@described
class Liveness(TypedDict):
    status: Literal["alive"]


@described
class Readiness(TypedDict):
    status: Literal["ready", "loading", "failed"]
    """`loading`: the model is being loaded; `failed`: the engine cannot be used."""


_TAG = Tag("Probes", "Probes for orchestrators and load balancers; no API key is needed.")
_LIVE = Operation("Liveness: the process answers", [Answer("Always 200.", Liveness)])
_READY = Operation(
    "Readiness: the engine can serve requests",
    [Answer("The engine is ready.", Readiness), Answer("It is loading or has failed.", Readiness, status=503)],
)
_NO_STORE = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class Probes(Dialect):
    """The probes of one service."""

    service: SpeechService

    def routes(self) -> list[BaseRoute]:
        return [ApiRoute("/livez", self.live, _TAG, _LIVE), ApiRoute("/readyz", self.ready, _TAG, _READY)]

    async def live(self, request: Request) -> Response:
        return JSONResponse(Liveness(status="alive"), headers=_NO_STORE)

    async def ready(self, request: Request) -> Response:
        state = self.service.state
        return JSONResponse(
            Readiness(status=state.value), 200 if state is EngineState.READY else 503, headers=_NO_STORE
        )
