"""The description of a route: its group, body, parameters and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict, with_config
from starlette.routing import Route

from streaming_server.api.http import Body

MAX_TEXT_CHARACTERS = "MAX_TEXT_CHARACTERS"
"""Stands for the setting's value in the schema of a field."""
described = with_config(ConfigDict(use_attribute_docstrings=True))
"""Decorates the TypedDict of an answer whose attribute docstrings go into ``/openapi.json``."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A group of routes."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a route reads outside its body and its validated query."""

    name: str
    place: Literal["path", "query", "header"]
    description: str
    kind: Any = str
    """A type, for pydantic to describe."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the answers of a route."""

    description: str
    kind: Any = None
    """A type, for pydantic to describe; None for what is not JSON."""
    media_types: Sequence[str] = ("application/json",)
    """Empty for an answer without a body."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By name, what each says."""
    status: int = 200


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route does, the same for all its methods."""

    summary: str
    answers: Sequence[Answer]
    takes: type[Body] | None = None
    """Validates the query of a GET, the body of any other method."""
    accepts: str = "application/json"
    """The media type of that body."""
    parameters: Sequence[Parameter] = ()
    refusals: Sequence[int] = ()
    """Statuses with the dialect's error shape, beyond those of a body and of API keys."""
    description: str = ""


class ApiRoute(Route):
    """A route with its operation; ``/openapi.json`` is made of these."""

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
    "X-Queue-Position": "The number of requests ahead in the queue at arrival; 0 if the request started immediately.",
}
SPEECH_REFUSALS = (400, 500, 503)
