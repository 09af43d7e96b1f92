"""How settings come out of environment variables: their types, their ranges, the sentence where one is wrong.

Knows no setting in particular, and does not read the environment itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from typing import Any

from streaming_server.errors import SpeechServerError

_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


class InvalidSetting(SpeechServerError):
    code = "invalid_setting"


def setting(
    default: Any,
    english: str,
    chinese: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field whose environment variable is its name in capitals; a number may also be one of the choices."""
    metadata = {"en": english, "zh": chinese, "least": least, "most": most, "choices": choices}
    return field(default=default, metadata=metadata)


def values_of(kind: type, environment: Mapping[str, str]) -> dict[str, Any]:
    """What is set of a dataclass's fields; an empty variable counts as not set.

    Raises:
        InvalidSetting: a value of the wrong type or outside its range; the sentence names the variable.
    """
    values: dict[str, Any] = {}
    for item in fields(kind):
        if text := environment.get(item.name.upper(), "").strip():
            assert item.default is not MISSING
            values[item.name] = _parse(item.name.upper(), text, type(item.default), item.metadata)
    return values


def markdown_table(kind: type, language: str) -> str:
    """A dataclass's fields as the README shows them; ``language`` is ``en`` or ``zh``."""
    head = {"en": "| variable | default | meaning |", "zh": "| 变量 | 默认值 | 含义 |"}[language]
    rows = []
    for item in fields(kind):
        default = ",".join(item.default) if isinstance(item.default, tuple) else item.default
        cores = {"en": "number of cores", "zh": "CPU 核数"}[language]
        if isinstance(default, bool):
            default = str(default).lower()
        shown = cores if item.name == "encode_threads" else f"`{default}`" if default != "" else ""
        rows.append(f"| `{item.name.upper()}` | {shown} | {item.metadata[language]} |")
    return "\n".join([head, "| --- | --- | --- |", *rows])


def _parse(name: str, text: str, kind: type, metadata: Mapping[str, Any]) -> Any:
    choices, least, most = metadata["choices"], metadata["least"], metadata["most"]
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise InvalidSetting(f"{name}={text}: true or false is needed")
        return _BOOLEANS[text.lower()]
    if text in choices:
        return text
    if least is None:
        if choices:
            raise InvalidSetting(f"{name}={text}: one of {', '.join(choices)} is needed")
        return tuple(part.strip() for part in text.split(",") if part.strip()) if kind is tuple else kind(text)
    bounds = f"of at least {least:g}" if most is None else f"from {least:g} to {most:g}"
    wanted = f"a {'' if kind is float else 'whole '}number {bounds}"
    refusal = InvalidSetting(f"{name}={text}: {' or '.join([*choices, wanted])} is needed")
    try:
        value = float(text) if kind is float else int(text)
    except ValueError:
        raise refusal from None
    if not math.isfinite(value) or value < least or (most is not None and value > most):
        raise refusal
    return kind(value)
