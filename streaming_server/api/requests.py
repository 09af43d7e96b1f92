"""What several dialects take alike of a model's sampling and of an emotion. Knows no route."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from streaming_server.api.http import Body
from streaming_server.domain import EmotionVector, Generation
from streaming_server.errors import InvalidRequest

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class SamplingBody(Body):
    do_sample: bool = True
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.95
    top_k: Annotated[int, Field(ge=0)] = 30
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
