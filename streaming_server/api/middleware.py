"""Middleware for every request: request id and log record, API keys, upload limits, and unexpected errors.

It fails closed: a scope of any type but ``lifespan`` is treated as a request.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from streaming_server.api.http import KEY_HEADERS, ErrorShapes, decoded, error_response, is_allowed_origin
from streaming_server.api.record import DISCONNECTED, RequestRecord
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
_KEY_TIMEOUT_S = 10.0
"""Until the first message of a session whose key is not in a header."""
_MAX_KEY_MESSAGE = 16 * 1024
"""Longest first message with a key, in characters."""
_MAX_LOGGED_PATH = 256
"""Longest path that is logged in full, in characters."""
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """Assigns the request id (the client's ``X-Request-Id`` if it is valid), and logs and counts the request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = _headers(scope).get("x-request-id", "")
        identity = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(identity)
        path = scope.get("path", "")
        logged = path if len(path) <= _MAX_LOGGED_PATH else path[:_MAX_LOGGED_PATH] + "…"
        record = RequestRecord(scope.get("method", scope["type"].upper()), logged)
        record.attach(scope)
        began_s = time.monotonic()

        async def watched_send(message: Message) -> None:
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    record.status = message["status"]
                    MutableHeaders(scope=message)["X-Request-Id"] = identity
                case "websocket.accept":
                    record.status = 101
                    MutableHeaders(scope=message)["X-Request-Id"] = identity
            if record.method != "HEAD":
                record.sent_bytes += len(message.get("body") or message.get("bytes") or message.get("text") or b"")
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            record.duration_s = round(time.monotonic() - began_s, 4)
            record.template = getattr(scope.get("route"), "path", record.template)
            log.info("request", extra={"fields": record.logged()})
            left = record.outcome == DISCONNECTED
            self._metrics.request(record.method, record.template, record.status, record.sent_bytes, left=left)
            request_id.reset(token)


class UnexpectedErrors:
    """Converts an unexpected exception to an error in the dialect's shape and logs it with its traceback."""

    def __init__(self, app: ASGIApp, shapes: ErrorShapes) -> None:
        self._app = app
        self._shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] in {"http.response.start", "websocket.accept"}
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ClientDisconnect:
            RequestRecord.of(scope).outcome = DISCONNECTED
        except asyncio.CancelledError:
            # Only the server cancels a request: SHUTDOWN_TIMEOUT_S has elapsed.
            RequestRecord.of(scope).outcome = ShuttingDown.code
            if not started:
                await _refuse(ShuttingDown(), self._shapes, scope, receive, send)
            elif not await _aborted(scope):
                raise
        except Exception:
            log.exception("unexpected error")
            if started and scope["type"] == "websocket":
                with suppress(RuntimeError):  # already closed
                    await send({"type": "websocket.close", "code": 1011})
                return
            if started or scope["type"] != "http":
                raise  # the response has started; the server closes the connection
            message = "an unexpected error; the server's log has the details under this request's X-Request-Id"
            body = self._shapes.of(scope["path"]).body(500, message, None)
            await JSONResponse(body, 500)(scope, receive, send)


class ApiKeys:
    """Requires an API key, if keys are set, for all paths but `OPEN`.

    ``metrics_key``, if set, is a further key for `METRICS`, which then needs a key also where there are no others.
    """

    OPEN = frozenset({"/", "/health", "/livez", "/readyz", "/player", "/docs", "/openapi.json"})
    METRICS = "/metrics"

    def __init__(self, app: ASGIApp, keys: Sequence[str], shapes: ErrorShapes, metrics_key: str = "") -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._metrics_keys = [*self._keys, metrics_key.encode()] if metrics_key else self._keys
        self._shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        keys = self._metrics_keys if scope.get("path") == self.METRICS else self._keys
        if scope["type"] == "lifespan" or not keys or self._is_open(scope) or self._has_key(scope, keys):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket" and not _names_key(scope) and self._shapes.of(scope["path"]).key_fields:
            RequestRecord.of(scope).is_key_pending = True
            await self._app(scope, self._checked(scope, receive), send)
        else:
            await _refuse(Unauthorized(), self._shapes, scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return scope["type"] == "http" and (scope["path"] in self.OPEN or scope["path"].startswith("/static/"))

    def _has_key(self, scope: Scope, keys: Sequence[bytes]) -> bool:
        headers = _headers(scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        named = [headers.get(name, "") for name in KEY_HEADERS]
        given = [*named, bearer.strip() if scheme.lower() == "bearer" else ""]
        # Headers were decoded as Latin-1: this gives back the bytes that the client sent.
        return _match([key.encode("latin-1") for key in given], keys)

    def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Messages of a session whose key stands in the first one.

        Receiving raises `Unauthorized` for a first message without a valid key, or for none in time.
        """
        is_checked = False
        fields = self._shapes.of(scope["path"]).key_fields
        deadline_s = asyncio.get_running_loop().time() + _KEY_TIMEOUT_S

        async def checked_receive() -> Message:
            nonlocal is_checked
            if is_checked:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await receive()
            except TimeoutError:
                raise Unauthorized from None
            if message["type"] == "websocket.receive":
                given = [key.encode("utf-8", "replace") for key in _first_keys(message, fields)]
                if not _match(given, self._keys):
                    raise Unauthorized
                is_checked = True
            return message

        return checked_receive


def _names_key(scope: Scope) -> bool:
    """Whether there is any header for an API key."""
    headers = _headers(scope)
    return any(name in headers for name in ("authorization", *KEY_HEADERS))


def _first_keys(message: Message, fields: Sequence[str]) -> list[str]:
    """The API keys that a message names."""
    text = message.get("text") or ""
    try:
        content = decoded(text.encode()) if len(text) <= _MAX_KEY_MESSAGE else None
    except SpeechServerError:
        return []
    named = [content.get(name) for name in fields] if isinstance(content, dict) else []
    return [key.removeprefix("Bearer ").strip() for key in named if isinstance(key, str)]


def _match(given: Sequence[bytes], keys: Sequence[bytes]) -> bool:
    """Whether any of the given keys is valid."""
    # All pairs are compared, each in constant time, so that the duration reveals nothing about the keys.
    return sum(hmac.compare_digest(one, key) for one in given for key in keys) > 0


class UploadGuard:
    """Limits the number and the duration of uploads, and rejects uploads from origins that are not allowed.

    A browser sends a form to another site without a preflight request, so CORS alone does not prevent such uploads.
    If API keys are set, `ApiKeys` rejects them.
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
        headers = _headers(scope)
        if not headers.get("content-type", "").lower().startswith("multipart/"):
            await self._app(scope, receive, send)
            return
        error: SpeechServerError | None = None
        if not is_allowed_origin(headers, self._origins):
            error = OriginRefused(headers["origin"])
        elif self._receiving >= self._max_uploads:
            error = TooManyUploads(self._max_uploads)
        if error is not None:
            await _refuse(error, self._shapes, scope, receive, send)
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


def _headers(scope: Scope) -> Headers:
    return Headers(raw=scope.get("headers", []))


async def _refuse(error: SpeechServerError, shapes: ErrorShapes, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an error; a WebSocket that is not open yet is denied with the same response.

    Raises:
        SpeechServerError: the scope type has no response.
    """
    RequestRecord.of(scope).outcome = error.code
    if scope["type"] not in {"http", "websocket"}:
        raise error
    response = error_response(error, shapes.of(scope["path"]), retry_after_s=1)
    if scope["type"] == "http":
        await response(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await WebSocket(scope, receive, send).close(code=1008, reason=str(error))


async def _aborted(scope: Scope) -> bool:
    """Abort the connection of a request; False if the server does not expose its transport."""
    transport = scope["state"].get("transport")
    if transport is None:
        return False
    transport.abort()
    await asyncio.sleep(0.01)  # lets the server notice that it needs no end of the response
    return True
