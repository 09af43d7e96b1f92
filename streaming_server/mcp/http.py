"""``/mcp``: the tools over streamable HTTP, and the files that they have made."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from streaming_server.api.http import Dialect, is_allowed_origin
from streaming_server.api.operations import Answer, ApiRoute, Operation, Parameter, Tag
from streaming_server.api.record import RequestRecord
from streaming_server.api.requests import RequestBuilder
from streaming_server.api.responses import AudioFileResponse
from streaming_server.audio.encoders import FORMATS
from streaming_server.errors import FileMissing, OriginRefused
from streaming_server.jobs.storage import AUDIO, Storage
from streaming_server.mcp.tools import SUFFIXES, create_tools

_NAME = re.compile(r"[0-9a-f]{32}\.(?:mp3|wav|ogg|flac)")
_MAX_BODY_BYTES = 6 * 1024 * 1024
"""Of one message, which may contain a recording in base64."""
_TAG = Tag("MCP", "The Model Context Protocol at `/mcp`, for language models.")
_AUDIO = Operation(
    "Audio of the tool speak",
    [Answer("The file.", None, [FORMATS[suffix].media_type for suffix in SUFFIXES.values()])],
    parameters=[Parameter("name", "path", "As in the URL that the tool returned.")],
    refusals=[404, 416],
)


class McpDialect(Dialect):
    """The routes; `run` serves them."""

    def __init__(self, requests: RequestBuilder, storage: Storage) -> None:
        self._storage = storage
        self._origins = requests.settings.cors_origins
        tools = create_tools(requests, storage, self._deliver, reads_files=False)
        # Each call stands alone, so that a gateway may send the next one to another server.
        self._manager = StreamableHTTPSessionManager(
            tools._lowlevel_server, stateless=True, max_request_body_size=_MAX_BODY_BYTES
        )

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve while the ``with`` lasts; its end cancels calls that are running."""
        async with self._manager.run():
            yield

    def routes(self) -> list[BaseRoute]:
        return [Route("/mcp", _Endpoint(self)), ApiRoute("/mcp/audio/{name}", self.audio, _TAG, _AUDIO)]

    async def audio(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not _NAME.fullmatch(name):
            raise FileMissing(name[:80])
        path = await self._storage.file_threads.run(self._storage.files.local, f"{AUDIO}/{name}")
        return AudioFileResponse(path, media_type=FORMATS[Path(name).suffix[1:]].media_type, filename=name)

    async def call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Raises:
            OriginRefused: the call comes from a page of an origin that is not allowed.
        """
        request = Request(scope)
        if not is_allowed_origin(request.headers, self._origins):
            raise OriginRefused(request.headers["origin"])
        await self._manager.handle_request(scope, receive, send)

    async def _deliver(self, path: Path, suffix: str, request: Request | None) -> str:
        """Store the file for as long as the audio of tasks is kept.

        Raises:
            StorageFull, StorageUnavailable: it cannot be stored.
        """
        assert request is not None
        name = f"{uuid.uuid4().hex}.{suffix}"
        await self._storage.file_threads.run(self._put, f"{AUDIO}/{name}", path)
        RequestRecord.of(request.scope).outcome = "complete"
        return f"{str(request.base_url).rstrip('/')}/mcp/audio/{name}"

    def _put(self, key: str, path: Path) -> None:
        with self._storage.files.staged(key, path) as put:
            put()


class _Endpoint:
    """An ASGI application, which Starlette calls for every method."""

    def __init__(self, dialect: McpDialect) -> None:
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._dialect.call(scope, receive, send)
