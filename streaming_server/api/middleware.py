"""Around every request: its id, its one log line, and an answer for what nobody expected.

Knows no route and no dialect beyond its error shape.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streaming_server.api.http import ErrorBody
from streaming_server.logs import request_id

log = logging.getLogger(__name__)
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """Names every request (``X-Request-Id``, the client's own where it is harmless) and logs it once it is over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
        began_s = time.monotonic()

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = identity
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            duration_s = round(time.monotonic() - began_s, 4)
            fields = {"method": scope["method"], "route": scope["path"], "status": status, "duration_s": duration_s}
            log.info("request", extra={"fields": fields | entry})
            request_id.reset(token)


class UnexpectedErrors:
    """Turns an exception that nothing foresaw into one error of the dialect's shape and one trace in the log."""

    def __init__(self, app: ASGIApp, body: ErrorBody) -> None:
        self._app = app
        self._body = body

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
        except Exception:
            log.exception("unexpected error")
            if started:
                raise  # too late for an answer; the server closes the connection
            message = "an unexpected error; the server's log has the details under this request's X-Request-Id"
            await JSONResponse(self._body(500, message, None), 500)(scope, receive, send)
