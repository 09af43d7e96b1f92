"""``/openapi.json`` (OpenAPI 3.1), generated from every `ApiRoute`, and its page ``/docs``."""

from __future__ import annotations

import gzip
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import anyio
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute

from streaming_server import __version__
from streaming_server.api.http import Dialect, ErrorShapes
from streaming_server.api.operations import MAX_TEXT_CHARACTERS, Answer, ApiRoute, Operation, Parameter, Tag
from streaming_server.api.reference import render

_TAG = Tag("Documentation", "This description.")
_PAGE = Operation("API reference for people", [Answer("A page.", None, ["text/html"])])
_DOCUMENT = Operation("API description for programs", [Answer("An OpenAPI document.", dict[str, Any])])
_INTRODUCTION = (
    "Streaming text to speech: audio is sent while it is synthesised, in several dialects over one engine. HEAD is "
    "answered wherever GET is. Requests of all dialects share one queue: live requests in order of arrival, then tasks."
)
_REFUSALS: Mapping[int, str] = {
    400: "Invalid value; the message names the field and the valid range.",
    401: "An API key is missing or wrong.",
    403: "The origin or the address is not allowed.",
    404: "Not found, or expired.",
    408: "A time limit has passed; an accepted workflow continues.",
    413: "The body is too large.",
    416: "The position is past the end.",
    422: "Not JSON, or a field that is missing, of the wrong type or out of range.",
    500: "Server error; the log has the details.",
    503: "The model is still loading, or the queue is full.",
    507: "The server's storage is full.",
}
_REFUSAL_HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"WWW-Authenticate": "`Bearer`."},
    416: {"Content-Range": "The number of bytes available."},
    503: {"Retry-After": "Seconds to wait before another try."},
}
_SECURITY_SCHEMES: Mapping[str, Mapping[str, str]] = {
    "Bearer": {"type": "http", "scheme": "bearer"},
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "xi-api-key": {"type": "apiKey", "in": "header", "name": "xi-api-key"},
}


class Docs(Dialect):
    """The routes of the API reference."""

    def __init__(
        self, shapes: ErrorShapes, open_paths: Collection[str], max_text_characters: int, *, keys_needed: bool
    ) -> None:
        """``open_paths``: the paths that require no key even if ``keys_needed``."""
        self._max_text_characters = max_text_characters
        self._shapes = shapes
        self._open_paths = open_paths
        self._keys_needed = keys_needed
        self._document: Mapping[str, Any] | None = None
        self._page: bytes | None = None

    def routes(self) -> list[BaseRoute]:
        return [ApiRoute("/docs", self.page, _TAG, _PAGE), ApiRoute("/openapi.json", self.openapi, _TAG, _DOCUMENT)]

    async def page(self, request: Request) -> Response:
        if self._page is None:
            described = await self._described(request)
            self._page = await anyio.to_thread.run_sync(lambda: gzip.compress(render(described).encode()))
        headers = {"Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return HTMLResponse(self._page, headers={**headers, "Content-Encoding": "gzip"})
        return HTMLResponse(gzip.decompress(self._page), headers=headers)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(await self._described(request), headers={"Cache-Control": "no-cache"})

    async def _described(self, request: Request) -> Mapping[str, Any]:
        """The document of all routes, made at the first request for it; a thread takes 0.2 s for it."""
        if self._document is None:
            described = [route for route in request.app.routes if isinstance(route, ApiRoute)]
            make = partial(document, described, self._shapes, self._open_paths, self._max_text_characters)
            self._document = await anyio.to_thread.run_sync(partial(make, keys_needed=self._keys_needed))
        return self._document


def document(
    routes: Iterable[ApiRoute],
    shapes: ErrorShapes,
    open_paths: Collection[str],
    max_text_characters: int,
    *,
    keys_needed: bool,
) -> dict[str, Any]:
    """Build the OpenAPI document of the routes."""
    routes = list(routes)
    schemas = _Schemas(routes, shapes, max_text_characters)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            described = _operation(route, method, schemas, shapes, is_open=route.path in open_paths)
            paths.setdefault(route.path_format, {})[method.lower()] = described
    required: list[dict[str, list[str]]] = [{name: []} for name in _SECURITY_SCHEMES]
    tags = dict.fromkeys(route.tag for route in routes)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Streaming speech", "version": __version__, "description": _INTRODUCTION},
        "tags": [{"name": tag.name, "description": tag.description} for tag in tags],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": _SECURITY_SCHEMES,
            "headers": {"X-Request-Id": _header("Names the request in the log; the client's own where it sent one.")},
        },
        "security": required if keys_needed else [{}, *required],
    }


def _operation(
    route: ApiRoute, method: str, schemas: _Schemas, shapes: ErrorShapes, *, is_open: bool
) -> dict[str, Any]:
    operation = route.operation
    name = re.sub(r"\W+", "_", f"{method.lower()}{route.path_format}").strip("_")
    described: dict[str, Any] = {"operationId": name, "tags": [route.tag.name], "summary": operation.summary}
    if operation.description:
        described["description"] = operation.description
    parameters = [_parameter(parameter) for parameter in operation.parameters]
    refusals = set(operation.refusals) | (set() if is_open else {401})
    if operation.takes is not None:
        refusals.add(shapes.of(route.path).invalid_status)
        if method == "GET":
            parameters += _query(schemas.fields(operation.takes))
        else:
            refusals.add(413)
            example = dict(_examples(schemas.fields(operation.takes)))
            content = {"schema": schemas.of(operation.takes), "example": example}
            described["requestBody"] = {"required": True, "content": {operation.accepts: content}}
    if parameters:
        described["parameters"] = parameters
    refused = [
        Answer(_REFUSALS[status], shapes.of(route.path).kind, headers=_REFUSAL_HEADERS.get(status, {}), status=status)
        for status in sorted(refusals - {answer.status for answer in operation.answers})
    ]
    described["responses"] = {
        str(answer.status): _response(answer, schemas) for answer in (*operation.answers, *refused)
    }
    if is_open:
        described["security"] = []
    return described


def _response(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    named = {name: _header(text) for name, text in answer.headers.items()}
    described: dict[str, Any] = {
        "description": answer.description,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}, **named},
    }
    if answer.media_types:
        content = {} if answer.kind is None else {"schema": schemas.of(answer.kind)}
        described["content"] = dict.fromkeys(answer.media_types, content)
    return described


def _header(text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": "string"}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.description,
        "schema": TypeAdapter(parameter.kind).json_schema(schema_generator=_Untitled),
    }


def _query(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, schema in fields["properties"].items():
        described = {key: value for key, value in schema.items() if key != "description"}
        place = {"name": name, "in": "query", "required": name in fields.get("required", ()), "schema": described}
        yield place | {key: schema[key] for key in ("description",) if key in schema}


def _examples(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, schema in fields["properties"].items():
        if "examples" in schema:
            yield name, schema["examples"][0]


class _Untitled(GenerateJsonSchema):
    """Omits titles, which would repeat the names of the fields."""

    def field_title_should_be_set(self, schema: CoreSchema) -> bool:
        return False


class _Schemas:
    """The schemas of all types that the routes use."""

    def __init__(self, routes: Iterable[ApiRoute], shapes: ErrorShapes, max_text_characters: int) -> None:
        kinds: dict[Any, Any] = {}
        for route in routes:
            if route.operation.takes is not None:
                kinds[route.operation.takes] = "validation"
            answered = [answer.kind for answer in route.operation.answers if answer.kind is not None]
            kinds |= dict.fromkeys([*answered, shapes.of(route.path).kind], "serialization")
        described, definitions = TypeAdapter.json_schemas(
            [(kind, mode, TypeAdapter(kind)) for kind, mode in kinds.items()],
            ref_template="#/components/schemas/{model}",
            schema_generator=_Untitled,
        )
        self._by_kind = {kind: schema for (kind, _), schema in described.items()}
        self.components: dict[str, Any] = definitions["$defs"]
        for component in self.components.values():
            for field in component.get("properties", {}).values():
                if field.get("maxLength") == MAX_TEXT_CHARACTERS:
                    field["maxLength"] = max_text_characters

    def of(self, kind: Any) -> dict[str, Any]:
        """Return a reference to a named type, or the schema of an unnamed one."""
        return self._by_kind[kind]

    def fields(self, kind: Any) -> Mapping[str, Any]:
        """Return the schema of a named type."""
        found: Mapping[str, Any] = self.components[self.of(kind)["$ref"].rsplit("/", 1)[1]]
        return found
