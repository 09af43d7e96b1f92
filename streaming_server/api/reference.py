"""The page ``/docs``: the OpenAPI document as HTML that can be read without a script or another host."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

_TEMPLATES = Path(__file__).parent.parent / "templates"
_ADDRESS = "http://localhost:8000"
"""Address in the examples; the page's script replaces it by its own."""
_MAX_DEPTH = 3
"""Levels of nested objects whose fields are listed."""
_MAX_PATTERN = 40
"""Longer patterns are not shown; their fields are described in words."""
_SUFFIXES = {"mpeg": "mp3", "x-wav": "wav", "L16": "pcm", "pcm": "pcm", "octet-stream": "pcm", "*": "mp3"}
"""Suffixes of files by media subtype, where they differ."""


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter, or a field of a JSON object."""

    name: str
    """With the names of the objects around it: ``usage.input``; ``[]`` stands for the elements of a list."""
    kind: str
    description: str
    is_required: bool = False
    limits: str = ""
    default: str = ""
    place: str = ""
    """``path``, ``query`` or ``header`` for a parameter."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response of an operation."""

    status: str
    description: str
    media_types: str
    headers: list[Field]


@dataclass(frozen=True, slots=True)
class Content:
    """The fields of a body or of an answer."""

    title: str
    media_type: str
    fields: list[Field]


@dataclass(frozen=True, slots=True)
class Entry:
    """An operation as the page shows it."""

    id: str
    method: str
    path: str
    summary: str
    description: str
    is_open: bool
    """Whether it needs no key on a server that has keys."""
    parameters: list[Field]
    body: Content | None
    replies: list[Reply]
    answers: list[Content]
    command: str


@dataclass(frozen=True, slots=True)
class Group:
    """The operations of a tag."""

    id: str
    name: str
    description: str
    entries: list[Entry]


def render(document: Mapping[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    keys_needed = {} not in document["security"]
    groups = list(_Reader(document).groups())
    return environment.get_template("docs.html").render(document=document, groups=groups, keys_needed=keys_needed)


def _prose(text: str) -> Markup:
    """Mark what stands between backticks as code."""
    return Markup(re.sub(r"`+([^`]+)`+", r"<code>\1</code>", str(escape(text))))


class _Reader:
    """Reads the operations of a document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._keys_needed = {} not in document["security"]

    def groups(self) -> Iterator[Group]:
        by_tag: dict[str, list[Entry]] = {tag["name"]: [] for tag in self._document["tags"]}
        for path, item in self._document["paths"].items():
            for method, operation in item.items():
                by_tag[operation["tags"][0]].append(self._entry(path, method.upper(), operation))
        for tag in self._document["tags"]:
            name = re.sub(r"\W+", "-", tag["name"].lower()).strip("-")
            yield Group(f"group-{name}", tag["name"], tag["description"], by_tag[tag["name"]])

    def _entry(self, path: str, method: str, operation: Mapping[str, Any]) -> Entry:
        body = None
        for media_type, taken in operation.get("requestBody", {}).get("content", {}).items():
            body = Content("Body", media_type, list(self._fields(taken["schema"])))
        return Entry(
            operation["operationId"],
            method,
            path,
            operation["summary"],
            operation.get("description", ""),
            operation.get("security") == [],
            [self._parameter(parameter) for parameter in operation.get("parameters", ())],
            body,
            [self._reply(status, answer) for status, answer in operation["responses"].items()],
            list(self._answers(operation["responses"])),
            self._command(path, method, operation),
        )

    def _parameter(self, parameter: Mapping[str, Any]) -> Field:
        described = {"description": parameter.get("description", "")} | parameter["schema"]
        return self._field(parameter["name"], described, is_required=parameter["required"], place=parameter["in"])

    def _reply(self, status: str, answer: Mapping[str, Any]) -> Reply:
        headers = [
            Field(name, "string", self._resolved(header)["description"])
            for name, header in answer.get("headers", {}).items()
            if name != "X-Request-Id"  # every answer has it; the page says so once
        ]
        return Reply(status, answer["description"], ", ".join(answer.get("content", ())), headers)

    def _answers(self, responses: Mapping[str, Any]) -> Iterator[Content]:
        """The fields of the answers in JSON; those of errors once, as they are the same for all."""
        shown = set()
        for status, answer in responses.items():
            for media_type, content in answer.get("content", {}).items():
                title = "Answer" if status < "400" else "Error"
                fields = list(self._fields(content.get("schema", {})))
                if fields and title not in shown:
                    shown.add(title)
                    yield Content(title, media_type, fields)

    def _fields(self, schema: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[Field]:
        """The fields of an object, or of the objects that a list or a choice has, with those inside them."""
        shape, suffix = self._object(schema)
        if suffix:
            prefix = f"{prefix.removesuffix('.')}{suffix}."
        if shape is None or depth > _MAX_DEPTH:
            return
        required = shape.get("required", ())
        for name, described in sorted(shape["properties"].items(), key=lambda item: item[0] not in required):
            yield self._field(f"{prefix}{name}", described, is_required=name in required)
            yield from self._fields(described, f"{prefix}{name}.", depth + 1)

    def _object(self, schema: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
        """The first object with named fields in a schema, and ``[]`` for each list around it."""
        schema = self._resolved(schema)
        if "properties" in schema:
            return schema, ""
        for alternative in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            found, suffix = self._object(alternative)
            if found is not None:
                return found, suffix
        if "items" in schema:
            found, suffix = self._object(schema["items"])
            return found, f"[]{suffix}"
        return None, ""

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        if "$ref" not in schema:
            return schema
        found: Any = self._document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return {**found, **{key: value for key, value in schema.items() if key != "$ref"}}

    def _field(self, name: str, schema: Mapping[str, Any], *, is_required: bool, place: str = "") -> Field:
        default = schema.get("default")
        return Field(
            name,
            self._kind(schema),
            schema.get("description", ""),
            is_required,
            self._limits(schema),
            "" if default is None else json.dumps(default, ensure_ascii=False),
            place,
        )

    def _kind(self, schema: Mapping[str, Any]) -> str:
        schema = self._resolved(schema)
        if alternatives := [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
            return " or ".join(dict.fromkeys(self._kind(alternative) for alternative in alternatives))
        if "const" in schema:
            return json.dumps(schema["const"], ensure_ascii=False)
        if "enum" in schema:
            return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
        kind = schema.get("type", "any")
        if kind == "array":
            return f"list of {self._kind(schema['items'])}" if "items" in schema else "list"
        return "file" if schema.get("format") == "binary" else str(kind)

    def _limits(self, schema: Mapping[str, Any]) -> str:
        """The limits in words, also of the elements of a list."""
        schema = self._resolved(schema)
        found = [
            _range(schema, "minimum", "maximum", ""),
            _range(schema, "exclusiveMinimum", "exclusiveMaximum", "", is_exclusive=True),
            _range(schema, "minLength", "maxLength", "characters"),
            _range(schema, "minItems", "maxItems", "elements"),
            f"matches {pattern}" if len(pattern := schema.get("pattern", "")) in range(1, _MAX_PATTERN) else "",
        ]
        found += [self._limits(alternative) for alternative in schema.get("anyOf", ())]
        if limits := self._limits(schema["items"]) if "items" in schema else "":
            found.append(f"each {limits}")
        return ", ".join(dict.fromkeys(limit for limit in found if limit))

    def _command(self, path: str, method: str, operation: Mapping[str, Any]) -> str:
        """Return the curl line of an operation, one option a line."""
        address = _ADDRESS + re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), path)
        query = [
            f"{parameter['name']}={parameter['schema'].get('examples', ['VALUE'])[0]}"
            for parameter in operation.get("parameters", ())
            if parameter["in"] == "query" and parameter["required"]
        ]
        answered = next(iter(operation["responses"].values())).get("content", {})
        main, _, subtype = next(iter(answered), "").partition("/")
        curl = "curl -N" if subtype == "event-stream" else "curl"
        parts = [f"{curl} {shlex.quote(address)}" if method in {"GET", "POST"} else f"{curl} -X {method} {address}"]
        parts += [f"-G --data-urlencode {shlex.quote(given)}" for given in query]
        if self._keys_needed and operation.get("security") != []:
            parts.append('-H "Authorization: Bearer $API_KEY"')
        for media_type, taken in operation.get("requestBody", {}).get("content", {}).items():
            parts += self._given(media_type, taken)
        if main == "audio" or subtype == "octet-stream":
            parts.append(f"-o speech.{_SUFFIXES.get(subtype, subtype)}")
        return " \\\n  ".join(parts)

    def _given(self, media_type: str, taken: Mapping[str, Any]) -> Iterator[str]:
        """The options of curl that send the example of a body."""
        if media_type != "multipart/form-data":
            example = json.dumps(taken["example"], ensure_ascii=False)
            yield f"-H 'Content-Type: {media_type}' -d {shlex.quote(example)}"
            return
        schema = self._resolved(taken["schema"])
        for name, described in schema["properties"].items():
            if "file" in self._kind(described).split():
                yield f"-F {name}=@voice.wav"
            elif name in taken["example"]:
                value = taken["example"][name]
                yield f"-F {shlex.quote(f'{name}={value}')}"
            elif name in schema.get("required", ()):
                yield f"-F {name}={name.upper()}"


def _range(schema: Mapping[str, Any], low: str, high: str, unit: str, *, is_exclusive: bool = False) -> str:
    least, most = schema.get(low), schema.get(high)
    unit = f" {unit}" if unit else ""
    if least is not None and most is not None and not is_exclusive:
        return f"{least} – {most}{unit}"
    limits = [
        f"{'more than' if is_exclusive else 'at least'} {least}{unit}" if least is not None else "",
        f"{'less than' if is_exclusive else 'at most'} {most}{unit}" if most is not None else "",
    ]
    return ", ".join(limit for limit in limits if limit)
