"""Around every request: its id, its one log line, and an answer for what nobody expected.

Knows no route and no dialect beyond its error shape.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streaming_server.api.http import ErrorShapes, error_response
from streaming_server.errors import (
    OriginRefused,
    ShuttingDown,
    SpeechServerError,
    TooManyUploads,
    Unauthorized,
    UploadTimeout,
)
from streaming_server.logs import request_id
from streaming_server.ops.metrics import Metrics

log = logging.getLogger(__name__)
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """Names every request (``X-Request-Id``, the client's own where it is harmless); logs and counts it at its end."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(identity)
        entry: dict[str, Any] = {}
        scope.setdefault("state", {})["log"] = entry
        status: int | None = None
        sent_bytes = 0
        began_s = time.monotonic()

        async def watched_send(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = identity
            sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            duration_s = round(time.monotonic() - began_s, 4)
            fields = {"method": scope["method"], "route": scope["path"], "status": status, "duration_s": duration_s}
            log.info("request", extra={"fields": fields | entry})
            route = scope["state"].get("route", "none")
            left = entry.get("outcome") == "disconnected"
            self._metrics.request(scope["method"], route, status, sent_bytes, left=left)
            request_id.reset(token)


class UnexpectedErrors:
    """Turns an exception that nothing foresaw into one error of the dialect's shape and one trace in the log."""

    def __init__(self, app: ASGIApp, shapes: ErrorShapes) -> None:
        self._app = app
        self._shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ClientDisconnect:
            scope["state"]["log"]["outcome"] = "disconnected"
        except asyncio.CancelledError:
            # Only the server cancels a request as a whole: the time that it gives at shutdown is over.
            scope["state"]["log"]["outcome"] = ShuttingDown.code
            if started:
                raise
            await error_response(ShuttingDown(), self._shapes.of(scope["path"]), 1)(scope, receive, send)
        except Exception:
            log.exception("unexpected error")
            if started:
                raise  # too late for an answer; the server closes the connection
            message = "an unexpected error; the server's log has the details under this request's X-Request-Id"
            body = self._shapes.of(scope["path"]).body(500, message, None)
            await JSONResponse(body, 500)(scope, receive, send)


class ApiKeys:
    """Lets in who knows a key; without keys, everybody. What says only that the server is there stays open."""

    OPEN = frozenset({"/", "/health", "/player", "/docs", "/openapi.json"})

    def __init__(self, app: ASGIApp, keys: Sequence[str], shapes: ErrorShapes) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or self._is_open(scope["path"]) or self._knows_key(scope):
            await self._app(scope, receive, send)
            return
        response = error_response(Unauthorized(), self._shapes.of(scope["path"]), 0)
        await response(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self.OPEN or path.startswith("/static/")

    def _knows_key(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), bearer.strip() if scheme.lower() == "bearer" else ""]
        # Every pair is compared, each in constant time: how long it takes tells nothing about the keys.
        return sum(hmac.compare_digest(one.encode("latin-1"), key) for one in given for key in self._keys) > 0


class UploadGuard:
    """Bounds uploads in number and time, and refuses those that a page of another site sends without being allowed.

    A browser sends a form to any site without asking first, so CORS alone does not keep such a page from uploading.
    With API keys it has none to send, and `ApiKeys` refuses it.
    """

    def __init__(
        self, app: ASGIApp, shapes: ErrorShapes, origins: Sequence[str], max_uploads: int, timeout_s: float
    ) -> None:
        self._app = app
        self._shapes = shapes
        self._origins = origins
        self._max_uploads = max_uploads
        self._timeout_s = timeout_s
        self._receiving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(raw=scope.get("headers", []))
        if not headers.get("content-type", "").lower().startswith("multipart/"):
            await self._app(scope, receive, send)
            return
        error: SpeechServerError | None = None
        if not self._is_allowed(headers):
            error = OriginRefused(headers["origin"])
        elif self._receiving >= self._max_uploads:
            error = TooManyUploads(self._max_uploads)
        if error is not None:
            await error_response(error, self._shapes.of(scope["path"]), 1)(scope, receive, send)
            return
        is_complete = False
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s

        def complete() -> None:
            nonlocal is_complete
            self._receiving -= not is_complete
            is_complete = True

        async def timed_receive() -> Message:
            try:
                async with asyncio.timeout_at(None if is_complete else deadline_s):
                    message = await receive()
            except TimeoutError:
                raise UploadTimeout(self._timeout_s) from None
            if not message.get("more_body", False):
                complete()
            return message

        self._receiving += 1
        try:
            await self._app(scope, timed_receive, send)
        finally:
            complete()

    def _is_allowed(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        own = origin is not None and origin.partition("://")[2] == headers.get("host")
        return origin is None or own or "*" in self._origins or origin in self._origins
