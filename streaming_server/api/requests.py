"""The fields that several dialects share: their types, their limits, and what they become in the domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from streaming_server.api.http import Body
from streaming_server.domain import EMOTIONS, EmotionVector, Generation
from streaming_server.errors import InvalidRequest

MAX_SPEAKERS = 64
"""Voices that one request may name."""

PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Text = Annotated[str, Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})]
"""Text to synthesise. Its limits are `check_text`'s, since one of them is a setting and the others have messages of
their own."""
Name = Annotated[str, Field(max_length=1024)]
"""The name of a voice, a file or a model."""
Names = Annotated[str, Field(max_length=4096)]
"""Names of voices, separated by commas."""
Description = Annotated[str, Field(max_length=4096)]
"""An emotion or a style in words."""
EmotionNumbers = Annotated[list[Share], Field(min_length=len(EMOTIONS), max_length=len(EMOTIONS), fail_fast=True)]


class SamplingBody(Body):
    do_sample: bool = True
    top_p: Share = 0.95
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 30
    temperature: PositiveFloat = 1.2
    length_penalty: float = 0.0
    num_beams: Annotated[int, Field(ge=1, le=10)] = 3
    """A stream by token samples with one, whatever this says."""
    repetition_penalty: PositiveFloat = 10.0
    max_mel_tokens: PositiveInt = 600
    """Most audio codes of one sentence, up to the model's own limit."""


def within_limit(generation: Generation, limit: int | None, body: Body, place: str = "body") -> Generation:
    """The generation with no more codes a sentence than the model's own limit.

    Raises:
        InvalidRequest: the body itself asks for more.
    """
    if limit is None or generation.max_mel_tokens <= limit:
        return generation
    if "max_mel_tokens" in body.model_fields_set:
        message = f"max_mel_tokens must be from 1 to {limit}, the model's own limit"
        raise InvalidRequest(message, "max_mel_tokens", place)
    return replace(generation, max_mel_tokens=limit)


def voice_names(names: str, field: str) -> list[str]:
    """The names in a list that is separated by commas.

    Raises:
        InvalidRequest: there are more than `MAX_SPEAKERS`.
    """
    found = [name.strip() for name in names.split(",")]
    if len(found) > MAX_SPEAKERS:
        raise InvalidRequest(f"{field} names {len(found)} voices; at most {MAX_SPEAKERS} are allowed", field)
    return found


def emotion_source(method: int, sources: Mapping[int, tuple[str, object]]) -> str | None:
    """The field that holds the emotion; None where the voice's own is meant.

    Args:
        method: as ``emo_control_method``.
        sources: by method, the field that it needs and that field's value.

    Raises:
        InvalidRequest: the field is missing.
    """
    if method not in sources:
        return None
    field, value = sources[method]
    if not value:
        raise InvalidRequest(f"{field} is required where emo_control_method is {method}", field)
    return field


def emotion_vector(numbers: Iterable[float]) -> EmotionVector:
    """Eight numbers, counted by the body's model, as a vector."""
    a, b, c, d, e, f, g, h = numbers
    return a, b, c, d, e, f, g, h
