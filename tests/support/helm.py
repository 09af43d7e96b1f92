"""Renders a chart: the subset of Go's templates, of Sprig and of Helm's functions that the project's chart uses.

A construct outside the subset raises, so a chart that renders here is evaluated whole. By hand, the output was compared
with that of Go's ``text/template`` and Sprig.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_TOKEN = re.compile(r'"(?:\\.|[^"])*"|\$?[\w.]+|\$|[()|,]|:=')

Node = str | tuple[str, str, list["Node"], list["Node"]]
"""Text, or an action: its word, its expression, and the nodes of its two branches."""


class ChartError(Exception):
    """The chart rejects its values."""


def _fail(message: str) -> None:
    raise ChartError(message)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "not": lambda value: not value,
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "gt": lambda first, second: first > second,
    "hasKey": lambda mapping, key: key in mapping,
    "fail": _fail,
    "int": lambda value: int(str(value).strip()),
    "until": range,
    "quote": lambda value: json.dumps(str(value), ensure_ascii=False),
    "trunc": lambda length, text: text[:length],
    "trimSuffix": lambda suffix, text: text.removesuffix(suffix),
    "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "toYaml": lambda value: yaml.safe_dump(value, default_flow_style=False).strip(),
    "nindent": lambda width, text: "".join(f"\n{' ' * width}{line}" for line in text.split("\n")),
}


class Chart:
    """A chart of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._defined: dict[str, list[Node]] = {}
        self._templates = {path.name: self._parsed(path) for path in sorted((folder / "templates").iterdir())}
        self.values: dict[str, Any] = yaml.safe_load((folder / "values.yaml").read_text())

    def render(self, release: str, **changes: Any) -> list[dict[str, Any]]:
        """The manifests, with changes to the top level of the values; mappings are merged one level deep."""
        values = {
            name: {**value, **changes.get(name, {})} if isinstance(value, dict) else changes.get(name, value)
            for name, value in self.values.items()
        }
        chart = yaml.safe_load((self._folder / "Chart.yaml").read_text())
        root = {
            "Values": values,
            "Chart": {name[0].upper() + name[1:]: value for name, value in chart.items()},
            "Release": {"Name": release, "Namespace": "speech"},
            "Files": {"Get": lambda name: (self._folder / name).read_text()},
        }
        texts = [self.text(nodes, root, {"$": root}) for nodes in self._templates.values()]
        return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]

    def text(self, nodes: list[Node], dot: Any, variables: dict[str, Any]) -> str:
        return "".join(self._pieces(nodes, dot, variables))

    def _pieces(self, nodes: list[Node], dot: Any, variables: dict[str, Any]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, str):
                yield node
                continue
            word, expression, body, otherwise = node
            if word == "range":
                names, _, source = expression.rpartition(":=")
                found = self._value(source or expression, dot, variables)
                for key, item in sorted(found.items()) if isinstance(found, dict) else enumerate(found):
                    named = [name.strip() for name in names.split(",") if name.strip()]
                    yield self.text(body, item, variables | dict(zip(reversed(named), (item, key), strict=False)))
            elif word in {"if", "with"}:
                value = self._value(expression, dot, variables)
                inner = value if word == "with" and value else dot
                yield self.text(body if value else otherwise, inner, variables)
            elif ":=" in expression:
                name, _, source = expression.partition(":=")
                variables[name.strip()] = self._value(source, dot, variables)
            else:
                value = self._value(expression, dot, variables)
                yield "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    def _value(self, expression: str, dot: Any, variables: Mapping[str, Any]) -> Any:
        tokens = _TOKEN.findall(expression)
        assert "".join(tokens) == re.sub(r'\s+(?=(?:[^"]*"[^"]*")*[^"]*$)', "", expression), expression
        value, rest = self._pipeline(tokens, dot, variables)
        assert not rest, expression
        return value

    def _pipeline(self, tokens: list[str], dot: Any, variables: Mapping[str, Any]) -> tuple[Any, list[str]]:
        piped: list[Any] = []
        while True:
            terms: list[Any] = []
            while tokens and tokens[0] not in {"|", ")"}:
                token, *tokens = tokens
                if token == "(":
                    value, tokens = self._pipeline(tokens, dot, variables)
                    assert tokens.pop(0) == ")"
                    terms.append(value)
                else:
                    terms.append(self._term(token, dot, variables, is_first=not terms))
            function, *arguments = terms
            value = function(*arguments, *piped) if callable(function) else function
            assert callable(function) or not (arguments or piped), terms
            if not tokens or tokens[0] == ")":
                return value, tokens
            piped, tokens = [value], tokens[1:]

    def _term(self, token: str, dot: Any, variables: Mapping[str, Any], *, is_first: bool) -> Any:
        if token.startswith('"'):
            return json.loads(token)
        if token.isdecimal():
            return int(token)
        if token.startswith((".", "$")):
            name, *path = token.split(".")
            value = variables[name] if name else dot
            for step in filter(None, path):
                value = value[step]
            return value
        assert is_first, token
        return self._call_include if token == "include" else _FUNCTIONS[token]

    def _call_include(self, name: str, dot: Any) -> str:
        return self.text(self._defined[name], dot, {"$": dot})

    def _parsed(self, path: Path) -> list[Node]:
        # A dash in the braces takes the white space of its side away.
        text = re.sub(r"\s*{{- ", "{{", re.sub(r" -}}\s*", "}}", path.read_text()))
        pieces: list[Node] = []
        for number, piece in enumerate(re.split(r"{{(.*?)}}", text, flags=re.DOTALL)):
            word, _, expression = piece.strip().partition(" ")
            if number % 2 == 0:
                pieces.append(piece)
            elif word in {"if", "else", "end", "range", "with", "define"}:
                pieces.append((word, expression, [], []))
            elif not word.startswith("/*"):
                pieces.append(("", piece.strip(), [], []))
        nodes, rest = self._block(pieces)
        assert not rest, path
        return nodes

    def _block(self, pieces: list[Node]) -> tuple[list[Node], list[Node]]:
        """The nodes up to an ``else`` or ``end`` of their level, and what follows from there."""
        nodes: list[Node] = []
        while pieces:
            piece, *pieces = pieces
            if isinstance(piece, str) or not piece[0]:
                nodes.append(piece)
                continue
            word, expression, _, _ = piece
            if word in {"else", "end"}:
                return nodes, [piece, *pieces]
            body, pieces = self._block(pieces)
            otherwise: list[Node] = []
            if pieces[0][0] == "else":
                otherwise, pieces = self._block(pieces[1:])
            assert pieces[0][0] == "end"
            pieces = pieces[1:]
            if word == "define":
                self._defined[json.loads(expression)] = body
            else:
                nodes.append((word, expression, body, otherwise))
        return nodes, []
