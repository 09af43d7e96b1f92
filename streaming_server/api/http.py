"""HTTP shared by all dialects: request bodies, error shapes, and the map from errors to status codes."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, get_args

import anyio
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from typing_extensions import TypedDict

from streaming_server import errors
from streaming_server.errors import BlankText, ForbiddenCharacter, InvalidRequest, SpeechServerError, TextTooLong
from streaming_server.text import forbidden_character

KEY_HEADERS = ("x-api-key", "xi-api-key")
"""Headers for the API key, beside ``Authorization``."""
MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_PROBLEMS = 10
"""Maximum number of problems that the answer to an invalid body lists."""
_MAX_VALUES = 30_000
"""Maximum number of commas, brackets and braces in a JSON body: parsing holds the GIL for each value."""
_MAX_DIGITS = 400
"""Maximum number of digits of an integer: the conversion takes quadratic time."""
_INLINE_BYTES = 16 * 1024
"""Larger bodies are parsed in a thread; for smaller ones a thread switch takes longer than parsing."""

ErrorBody = Callable[[int, str, SpeechServerError | None], Mapping[str, Any]]
"""Builds the JSON object from the status, the message and the error, if any."""


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """The error responses of a dialect."""

    body: ErrorBody
    kind: Any
    """The type that ``body`` returns, for the OpenAPI schema."""
    invalid_status: int = 400
    """The status for a field of the wrong type or out of range."""
    statuses: Mapping[type[SpeechServerError], int] = field(default_factory=dict)
    """The status of errors that have another one in this dialect."""
    key_fields: Sequence[str] = ()
    """Fields of the first message of a WebSocket in which its clients may send the API key."""


class Dialect(ABC):
    """A set of routes and the shapes of their errors."""

    __slots__ = ()
    shapes: ClassVar[Mapping[str, ErrorShape]] = MappingProxyType({})
    """Shapes by path prefix, for paths that do not use the default shape.

    A prefix matches whole path segments unless it ends with ``*``."""
    path_shapes: ClassVar[Mapping[str, ErrorShape]] = MappingProxyType({})
    """Shapes by exact path."""

    @abstractmethod
    def routes(self) -> list[BaseRoute]:
        """The routes that the application mounts."""


class ErrorShapes:
    """Finds the error shape of a path: an exact match first, then the longest matching prefix."""

    def __init__(
        self,
        default: ErrorShape,
        by_prefix: Mapping[str, ErrorShape],
        by_path: Mapping[str, ErrorShape] = MappingProxyType({}),
    ) -> None:
        """``by_prefix`` and ``by_path``: as `Dialect.shapes` and `Dialect.path_shapes`."""
        self._default = default
        self._by_path = by_path
        self._by_prefix = sorted(by_prefix.items(), key=lambda item: -len(item[0]))

    def of(self, path: str) -> ErrorShape:
        if path in self._by_path:
            return self._by_path[path]
        for prefix, shape in self._by_prefix:
            if path == prefix or path.startswith(prefix[:-1] if prefix.endswith("*") else prefix + "/"):
                return shape
        return self._default


class Problem(TypedDict):
    """One problem of a request, in FastAPI's format."""

    loc: Sequence[str | int]
    msg: str
    type: str


class MalformedBody(InvalidRequest):
    """The body or query of a request is invalid."""

    code = "malformed_body"

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        place, *path = first["loc"]
        # If a field accepts several types, further parts of the path name the types.
        field = path[0] if path and isinstance(path[0], str) else ""
        super().__init__(f"{field}: {first['msg']}" if field else first["msg"], field, str(place))
        self.problems = problems


class RangeNotSatisfiable(SpeechServerError):
    """The requested position is past the end of a stream or a file."""

    code = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(f"the audio has {size} bytes")
        self.size = size


class Body(BaseModel):
    """A JSON body: unknown fields are ignored; NaN and infinities are errors.

    The docstrings of its fields are their descriptions in ``/openapi.json``.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True, use_attribute_docstrings=True)

    refused: ClassVar[Mapping[str, str]] = {}
    """Fields of other dialects that this one does not support, with the error message of each."""


B = TypeVar("B", bound=Body)


async def parse_body(request: Request, model: type[B], limit_bytes: int = MAX_BODY_BYTES) -> B:
    """Read and validate a JSON body; a large body is parsed in a thread.

    Raises:
        MalformedBody: not JSON, or a field that is missing, of the wrong type or out of range.
        HTTPException: 413 if the body has more than ``limit_bytes``.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if not re.fullmatch(r"application/([\w.-]+\+)?json", media_type):
        message = f"Content-Type must be application/json, not {media_type[:80] or 'missing'}"
        raise MalformedBody([{"loc": ["header", "content-type"], "msg": message, "type": "content_type"}])
    body = await read_body(request, limit_bytes)
    if len(body) <= _INLINE_BYTES:
        return parsed(model, body)
    # One at a time: parsing holds the GIL, and the event loop must get it in between.
    return await anyio.to_thread.run_sync(parsed, model, body, limiter=request.app.state.parsing)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """
    Raises:
        HTTPException: 413 if the body has more than ``limit_bytes``.
    """
    too_large = HTTPException(413, f"the body is larger than {limit_bytes} bytes")
    if int(request.headers.get("content-length", 0)) > limit_bytes:
        raise too_large  # checked before a client that waits for `100 Continue` sends the body
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit_bytes:
            raise too_large
    return bytes(body)


def parsed(model: type[B], content: bytes) -> B:
    """
    Raises:
        MalformedBody: as `parse_body`.
    """
    return validated(model, decoded(content), "body")


def decoded(content: bytes) -> object:
    """Decode a JSON text.

    Raises:
        MalformedBody: not JSON, or too many values.
    """
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > _MAX_VALUES:
        message = f"the body has more than {_MAX_VALUES} values"
        raise MalformedBody([{"loc": ["body"], "msg": message, "type": "json_invalid"}])
    try:
        return json.loads(content, parse_int=_integer, parse_float=_number)
    except (ValueError, RecursionError) as error:
        place = getattr(error, "pos", 0)
        raise MalformedBody([{"loc": ["body", place], "msg": "JSON decode error", "type": "json_invalid"}]) from None


def _integer(text: str) -> int:
    """
    Raises:
        ValueError: the integer has more than `_MAX_DIGITS`.
    """
    if len(text) > _MAX_DIGITS:
        raise ValueError("too many digits")
    return int(text)


def _number(text: str) -> float:
    """Convert a whole number to an integer: JSON does not distinguish ``2.0`` and ``2``."""
    value = float(text)
    return int(value) if value.is_integer() else value


def parse_query(request: Request, model: type[B]) -> B:
    """Validate the query parameters.

    Raises:
        MalformedBody: as `parse_body`.
    """
    return validated_text(model, dict(request.query_params), "query")


def validated(model: type[B], content: object, where: str) -> B:
    """Validate JSON values strictly: a number is not accepted as a string, nor a boolean as a number.

    Raises:
        MalformedBody: a field that is missing, of the wrong type, out of range or refused.
    """
    return _validated(model, content, where, lambda: model.model_validate(content, strict=True))


def validated_text(model: type[B], content: Mapping[str, str], where: str) -> B:
    """Validate the text values of a query or a form; ``null`` is null unless the field accepts text.

    Raises:
        MalformedBody: as `validated`.
    """
    nullable = {
        name
        for name, field in model.model_fields.items()
        if type(None) in get_args(field.annotation) and str not in get_args(field.annotation)
    }
    nulls = {name: None for name, value in content.items() if value == "null" and name in nullable}
    rest = {name: value for name, value in content.items() if name not in nulls}
    return _validated(model, rest, where, lambda: model.model_validate_strings(rest).model_copy(update=nulls))


def _validated(model: type[B], content: object, where: str, validate: Callable[[], B]) -> B:
    given = content if isinstance(content, Mapping) else {}
    problems: list[Problem] = [
        {"loc": [where, name], "msg": message, "type": "refused_field"}
        for name, message in model.refused.items()
        if given.get(name) is not None
    ]
    try:
        body = validate()
    except ValidationError as error:
        problems += [
            {
                "loc": [where, *problem["loc"]],
                "msg": "Input should be a JSON object" if problem["type"] == "model_type" else problem["msg"],
                "type": problem["type"],
            }
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    if problems:
        raise MalformedBody(problems[:MAX_PROBLEMS])
    return body


def check_text(text: str, limit: int, field: str = "text", place: str = "body") -> str:
    """Return the text if it can be synthesised.

    Raises:
        BlankText, TextTooLong: it is blank, or has more than ``limit`` characters.
        ForbiddenCharacter: it contains a control character or a lone surrogate.
    """
    if len(text) > limit:
        raise TextTooLong(len(text), limit, field, place)
    if found := forbidden_character(text):
        raise ForbiddenCharacter(*found, field, place)
    if not text.strip():
        raise BlankText(field)
    return text


def is_allowed_origin(headers: Headers, allowed: Collection[str]) -> bool:
    """Whether a request has no origin, the server's own, or an allowed one."""
    origin = headers.get("origin")
    is_own = origin is not None and origin.partition("://")[2] == headers.get("host")
    return origin is None or is_own or "*" in allowed or origin in allowed


def head_response(media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer HEAD for a streaming GET: the headers without a length, which is unknown."""
    response = Response(media_type=media_type, headers=headers)
    del response.headers["content-length"]
    return response


_STATUS: Mapping[type[SpeechServerError], int] = {
    errors.BlankText: 400,
    errors.VoiceIndexOutOfRange: 400,
    errors.Unauthorized: 401,
    errors.RecordingRefused: 400,
    errors.FileOutside: 400,
    errors.LoopbackOnly: 403,
    errors.OriginRefused: 403,
    errors.StreamNotFound: 404,
    errors.UploadNotFound: 404,
    errors.VoiceNotFound: 404,
    errors.ConsentNotFound: 404,
    errors.JobNotFound: 404,
    errors.FileMissing: 404,
    errors.UploadTimeout: 408,
    errors.UploadTooLarge: 413,
    RangeNotSatisfiable: 416,
    errors.EngineNotReady: 503,
    errors.DeviceFailed: 503,
    errors.ShuttingDown: 503,
    errors.QueueFull: 503,
    errors.QueueTimeout: 503,
    errors.JobQueueFull: 503,
    errors.TooManyUploads: 503,
    errors.InsufficientMemory: 503,
    errors.StorageUnavailable: 503,
    errors.StorageFull: 507,
    SpeechServerError: 500,
}


def status_of(error: SpeechServerError, shape: ErrorShape) -> int:
    """Return the status of an expected error."""
    statuses = {**_STATUS, errors.InvalidRequest: shape.invalid_status, **shape.statuses}
    return next(statuses[kind] for kind in type(error).__mro__ if kind in statuses)


def error_response(error: Exception, shape: ErrorShape, retry_after_s: float) -> JSONResponse:
    """Return an expected error in a dialect's shape, with ``Retry-After`` if the error is retryable."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
        return JSONResponse(shape.body(error.status_code, error.detail, None), error.status_code, headers)
    assert isinstance(error, SpeechServerError)
    status = status_of(error, shape)
    if error.retryable:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    if isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.UploadTimeout):
        headers["Connection"] = "close"  # the unread rest of the body precedes the next request
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    return JSONResponse(shape.body(status, str(error), error), status, headers)
