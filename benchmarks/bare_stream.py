"""The floor of the first audio: Starlette and an engine without slot, queue, encoder or dialect."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from streaming_server.domain import SpeechRequest, Voice
from streaming_server.engines.espeak.engine import EspeakEngine

VOICE = Voice("voice_01", Path("reference_audios/voice_01.wav"), 0)


def create_app() -> Starlette:
    engine = EspeakEngine()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await engine.warm()
        yield
        await engine.aclose()

    async def samples(text: str) -> AsyncIterator[bytes]:
        async with aclosing(engine.stream(SpeechRequest(text, VOICE))) as chunks:
            async for chunk in chunks:
                yield chunk.samples.tobytes()

    async def bare(request: Request) -> Response:
        return StreamingResponse(samples((await request.json())["text"]))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "healthy"})

    routes = [Route("/bare", bare, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    uvicorn.run(create_app(), host="127.0.0.1", port=0, access_log=False, log_config=None)
