"""The HTML of the API reference: what descriptions and types look like in it."""

from __future__ import annotations

import html
import re
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from streaming_server.api.http import Body, ErrorShapes
from streaming_server.api.native.routes import ERRORS
from streaming_server.api.openapi import document
from streaming_server.api.operations import Answer, ApiRoute, Operation, Parameter, Tag
from streaming_server.api.reference import render


class Turn(Body):
    voice: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """A name, `<b>` included."""


class TurnsBody(Body):
    turns: Annotated[list[Turn], Field(max_length=4, examples=[[{"voice": "Ann's"}]])]
    kind: Literal["a", "b"] = "a"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5


async def nothing(request: Request) -> Response:
    return Response()


def page(*, keys_needed: bool) -> str:
    parameter = Parameter("X-Mode", "header", "How.")
    operation = Operation("Speak <now>", [Answer("Audio.", None, ["audio/mpeg"])], TurnsBody, parameters=[parameter])
    route = ApiRoute("/speak/{id}", nothing, Tag("A & B", "Both."), operation, methods=["PUT"])
    return render(document([route], ErrorShapes(ERRORS, {}), (), 100, keys_needed=keys_needed))


def rows(text: str) -> list[str]:
    """The terms and descriptions of a page as plain text."""
    found = re.findall(r"<div><dt>(.*?)</dd></div>", text, re.DOTALL)
    return [" ".join(html.unescape(re.sub("<[^>]+>", "", row)).split()) for row in found]


def test_fields_have_their_types_and_limits() -> None:
    shown = rows(page(keys_needed=False))
    assert shown[:5] == [
        "X-Mode string, header How.",
        "turns list of object required at most 4 elements",
        "turns[].voice string or null A name, <b> included. 1 – 64 characters",
        'kind "a" | "b" default "a"',
        "share number more than 0, less than 1 default 0.5",
    ]
    assert "detail[].loc list of string or integer required" in shown


def test_text_is_escaped() -> None:
    text = page(keys_needed=False)
    assert "Speak &lt;now&gt;" in text
    assert "<code>&lt;b&gt;</code>" in text
    assert '<h2 id="group-a-b">A &amp; B</h2>' in text


def test_the_example_is_a_line_for_a_shell() -> None:
    (line,) = re.findall("<pre><code>(.*?)</code>", page(keys_needed=True), re.DOTALL)
    assert html.unescape(line).replace(" \\\n ", "").split(" -") == [
        "curl",
        "X PUT http://localhost:8000/speak/ID",
        'H "Authorization: Bearer $API_KEY"',
        "H 'Content-Type: application/json'",
        """d '{"turns": [{"voice": "Ann'"'"'s"}]}'""",
        "o speech.mp3",
    ]
    assert "Authorization" not in re.findall("<pre>.*?</pre>", page(keys_needed=False), re.DOTALL)[0]
