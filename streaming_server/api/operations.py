"""The description of a route: its group, body, parameters and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict, with_config
from starlette.routing import Route

from streaming_server.api.http import Body

MAX_TEXT_CHARACTERS = "MAX_TEXT_CHARACTERS"
"""Placeholder in schemas, replaced by the value of the setting."""
described = with_config(ConfigDict(use_attribute_docstrings=True))
"""Decorator for the TypedDict of an answer: its attribute docstrings become descriptions in ``/openapi.json``."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A group of routes."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a route outside its body and its validated query."""

    name: str
    place: Literal["path", "query", "header"]
    description: str
    kind: Any = str
    """The type, for the schema."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of a route."""

    description: str
    kind: Any = None
    """The type, for the schema; None if the content is not JSON."""
    media_types: Sequence[str] = ("application/json",)
    """Empty if the response has no body."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Descriptions by name."""
    status: int = 200


@dataclass(frozen=True, slots=True)
class Operation:
    """The description of a route, the same for all its methods."""

    summary: str
    answers: Sequence[Answer]
    takes: type[Body] | None = None
    """The model of the query for GET, of the body for other methods."""
    accepts: str = "application/json"
    """The media type of the body."""
    parameters: Sequence[Parameter] = ()
    refusals: Sequence[int] = ()
    """Error statuses in addition to those of an invalid body and of API keys."""
    description: str = ""


class ApiRoute(Route):
    """A route with its description for ``/openapi.json``."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        tag: Tag,
        operation: Operation,
        *,
        methods: list[str] | None = None,
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.tag = tag
        self.operation = operation


RESUMABLE = Parameter(
    "X-Resumable",
    "header",
    "`true` or `1`: continue the synthesis for a limited time after a disconnect, so that `/streams/{stream_id}` can "
    "resume the stream.",
)
STREAM_HEADERS: Mapping[str, str] = {
    "X-Stream-Id": "The id of the stream, for `/streams/{stream_id}`.",
    "X-Resumable": "Whether the synthesis continues for a limited time after a disconnect: `true` or `false`.",
    "X-Queue-Position": "The number of requests ahead in the queue at arrival; 0 if the request started immediately.",
}
IGNORED_HEADER = "X-Ignored-Settings"
IGNORED_NOTE = f"The header `{IGNORED_HEADER}` names settings that the engine cannot honour, if there are any."


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """The header that names settings without effect; empty if there are none."""
    return {IGNORED_HEADER: ", ".join(names)} if names else {}


SPEECH_REFUSALS = (400, 500, 503)
