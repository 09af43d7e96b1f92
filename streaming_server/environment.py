"""Reads settings from environment variables and formats the errors of invalid values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from streaming_server.errors import SpeechServerError


class InvalidSetting(SpeechServerError):
    code = "invalid_setting"


class SettingsGroup(BaseSettings):
    """A group of settings.

    The variable of a field is its ``validation_alias``, or ``env_prefix`` and its name in upper case. Its description
    is used in ``--help`` and in the table of the documentation.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use the values of the caller only; `from_env` reads the environment."""
        return (init_settings,)

    @classmethod
    def variables(cls) -> dict[str, FieldInfo]:
        """Return the fields by variable."""
        prefix = cls.model_config.get("env_prefix", "")
        return {
            str(item.validation_alias or f"{prefix}{name}".upper()): item
            for name, item in cls.model_fields.items()
            if not item.exclude
        }

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Self:
        """Read the variables; an empty one counts as not set.

        Raises:
            InvalidSetting: a value is invalid; the message has the variable, the value and the valid range.
        """
        fields = [name for name, item in cls.model_fields.items() if not item.exclude]
        variables = dict(zip(cls.variables(), fields, strict=True))
        given = {name: text for name in variables if (text := environment.get(name, "").strip())}
        try:
            return cls(**{variables[name]: text for name, text in given.items()})
        except ValidationError as error:
            place = str(error.errors()[0]["loc"][0])
            name = next(name for name, field_name in variables.items() if place in {name, field_name})
            needed = valid_values(cls.variables()[name])
            raise InvalidSetting(f"{name}={given[name]}: {needed} is needed") from None


def meaning(item: FieldInfo) -> str:
    """Return the description in one line without the final full stop."""
    return " ".join(str(item.description).split()).removesuffix(".")


def choices_of(item: FieldInfo) -> list[str]:
    """Return the valid words of a setting."""
    return [
        str(value)
        for kind, _ in _kinds(item.annotation, item.metadata)
        if get_origin(kind) is Literal
        for value in get_args(kind)
    ]


def valid_values(item: FieldInfo) -> str:
    """Describe the valid values, such as ``one of a, b`` or ``exact or a whole number from 1 to 31``."""
    numbers = [_number(kind, limits) for kind, limits in _kinds(item.annotation, item.metadata) if kind in (int, float)]
    if numbers:
        return " or ".join([*choices_of(item), *numbers])
    if get_origin(item.annotation) is tuple:
        return "at least one value"
    return f"one of {', '.join(choices_of(item))}" if choices_of(item) else "true or false"


def _kinds(annotation: Any, limits: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Iterate over the alternatives of an annotation, each with its limits."""
    if get_origin(annotation) is Annotated:
        kind, *metadata = get_args(annotation)
        yield from _kinds(kind, [limit for item in metadata for limit in getattr(item, "metadata", [item])])
    elif get_origin(annotation) in {Union, UnionType}:
        for kind in get_args(annotation):
            yield from _kinds(kind, limits)
    else:
        yield annotation, limits


def _number(kind: type, limits: list[Any]) -> str:
    minimum = next((limit.ge for limit in limits if hasattr(limit, "ge")), None)
    if any(hasattr(limit, "gt") for limit in limits):  # PositiveInt
        minimum = 1
    maximum = next((limit.le for limit in limits if hasattr(limit, "le")), None)
    bounds = f"of at least {minimum:g}" if maximum is None else f"from {minimum:g} to {maximum:g}"
    return f"a {'' if kind is float else 'whole '}number {bounds}"
