"""The fields that several dialects share: their types, their limits, and what they become in the domain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from streaming_server.api.http import Body, check_text
from streaming_server.api.operations import MAX_TEXT_CHARACTERS
from streaming_server.api.references import References
from streaming_server.domain import (
    EMOTIONS,
    Emotion,
    EmotionVector,
    Generation,
    Granularity,
    SpeechRequest,
    TextPieces,
    Voice,
)
from streaming_server.errors import InvalidRequest
from streaming_server.logs import request_id
from streaming_server.settings import Settings
from streaming_server.speech.dialogue import PLAIN, Cutting, as_dialogue, is_dialogue, script_of
from streaming_server.speech.service import SpeechService
from streaming_server.speech.voices import VoiceLibrary

MAX_SPEAKERS = 64
"""Voices that one request may name."""

PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
_CONTROL = r"\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f"
Text = Annotated[
    str,
    Field(
        json_schema_extra={
            "minLength": 1,
            "maxLength": MAX_TEXT_CHARACTERS,
            "pattern": rf"^[^{_CONTROL}]*[^{_CONTROL}\s][^{_CONTROL}]*$",
        }
    ),
]
"""Text to synthesise. `check_text` enforces this, since one limit is a setting and blank text has its own message."""
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
    top_k: Annotated[int, Field(ge=0)] = 30
    temperature: PositiveFloat = 1.2
    length_penalty: float = 0.0
    num_beams: Annotated[int, Field(ge=1, le=10)] = 3
    """A stream by token samples with one, whatever this says."""
    repetition_penalty: PositiveFloat = 10.0
    max_mel_tokens: PositiveInt = 600
    """Most audio codes of one sentence, up to the model's own limit."""


def voice_names(names: str, field: str) -> list[str]:
    """The names in a list that is separated by commas.

    Raises:
        InvalidRequest: there are more than `MAX_SPEAKERS`.
    """
    found = [name.strip() for name in names.split(",")]
    if len(found) > MAX_SPEAKERS:
        raise InvalidRequest(f"{field} names {len(found)} voices; at most {MAX_SPEAKERS} are allowed", field)
    return found


@dataclass(frozen=True, slots=True)
class EmotionFields:
    """The fields in which a dialect takes an emotion: each its name and what the client sent."""

    reference: tuple[str, str | None]
    vector: tuple[str, Sequence[float] | None]
    text: tuple[str, str | None]
    weight: float = 1.0
    random: bool = False

    def by_method(self, method: int) -> str | None:
        """The field that ``emo_control_method`` chooses; None for the voice's own emotion.

        Raises:
            InvalidRequest: that field is missing.
        """
        if method == 0:
            return None
        field, value = (self.reference, self.vector, self.text)[method - 1]
        if not value or (isinstance(value, str) and not value.strip()):
            raise InvalidRequest(f"{field} is required where emo_control_method is {method}", field)
        return field

    def given(self) -> list[str]:
        """The fields that say anything, the one that counts first: text goes before vector, vector before recording."""
        sources = (self.text, self.vector, self.reference)
        return [name for name, value in sources if (value.strip() if isinstance(value, str) else value)]


@dataclass(frozen=True, slots=True)
class RequestBuilder:
    """Makes the `SpeechRequest` of every dialect: a dialect maps its fields, the checks and limits are here."""

    service: SpeechService
    voices: VoiceLibrary
    settings: Settings
    references: References

    def build(
        self,
        text: str | TextPieces,
        voices: Sequence[Voice],
        generation: Generation,
        granularity: Granularity | None = Granularity.SENTENCE,
        *,
        field: str = "text",
        place: str = "body",
        max_characters: int | None = None,
        max_codes_field: str | None = None,
        cutting: Cutting | None = None,
        with_tags: bool = False,
        emotion: Emotion | None = None,
        speed: float = 1.0,
        sentence_batch: int = 1,
        verbose: bool = False,
        scene: str = "",
        own_voices: bool = False,
    ) -> SpeechRequest:
        """A request that the engine can take.

        Args:
            text: as it came; an incremental text is neither checked here nor cut into turns.
            voices: the one that speaks, or those of ``[SPEAKER0]``, ``[SPEAKER1]`` … in their order.
            generation: as it came; its codes are bounded by the model's own limit.
            granularity: None as the engine is set to.
            field: what the dialect calls the text.
            place: where the fields are, ``body`` or ``query``.
            max_characters: the dialect's own limit, below that of the settings.
            max_codes_field: the field in which the client asked for more or fewer codes, if it did; more than the
                model's limit is then an error.
            cutting: the text is a script, cut like this.
            with_tags: the text is a dialogue where it has tags and the setting ``dialogue`` is on. A single voice is
                then the first speaker, and the listed voices are the others.
            emotion: from `emotion`.
            speed: tempo.
            sentence_batch: sentences decoded together.
            verbose: log the request's details.
            scene: where the text is said, in words.
            own_voices: the engine may choose the voices.

        Raises:
            InvalidRequest: a text that cannot be spoken, a speaker without a voice, or too many codes.
        """
        limit = self.settings.max_text_characters
        whole, pieces = (text, None) if isinstance(text, str) else ("", text)
        if pieces is None:
            check_text(whole, min(limit, max_characters or limit), field, place)
        is_script = cutting is not None or len(voices) > 1
        script = script_of(whole, voices, cutting or PLAIN, field) if is_script else ()
        request = SpeechRequest(
            whole,
            script[0][0].voice if cutting else voices[0],
            self._within_limit(generation, max_codes_field, place),
            granularity,
            sentence_batch,
            verbose,
            request_id.get() or "",
            emotion,
            speed,
            script,
            scene,
            own_voices,
            pieces,
        )
        if with_tags and not script and self.settings.dialogue:
            return as_dialogue(request, self.voices.list(), field)
        return request

    def has_speakers(self, text: str) -> bool:
        """Whether a text is a dialogue where the dialect leaves that to the setting ``dialogue``."""
        return self.settings.dialogue and is_dialogue(text)

    async def emotion(
        self, fields: EmotionFields, field: str | None, find: Callable[[str, str], Awaitable[Voice]]
    ) -> Emotion | None:
        """The emotion of one of the fields; None where no field is chosen.

        Args:
            fields: what the client sent.
            field: the one that counts.
            find: the voice of a name; its second argument is the field.

        Raises:
            InvalidRequest: a description that cannot be used, or what ``find`` raises.
        """
        if field is None:
            return None
        reference_field, name = fields.reference
        vector_field, numbers = fields.vector
        text_field, text = fields.text
        limit = self.settings.max_text_characters
        return Emotion(
            await find(name, field) if name and field == reference_field else None,
            emotion_vector(numbers) if numbers and field == vector_field else None,
            check_text(text, limit, field) if text and field == text_field else None,
            fields.weight,
            fields.random,
        )

    def _within_limit(self, generation: Generation, field: str | None, place: str) -> Generation:
        limit = self.service.engine.info.max_mel_tokens
        if limit is None or generation.max_mel_tokens <= limit:
            return generation
        if field:
            raise InvalidRequest(f"{field} must be from 1 to {limit}, the model's own limit", field, place)
        return replace(generation, max_mel_tokens=limit)


def emotion_vector(numbers: Sequence[float]) -> EmotionVector:
    """Eight numbers, counted by the body's model, each at most 1."""
    a, b, c, d, e, f, g, h = (min(number, 1.0) for number in numbers)
    return a, b, c, d, e, f, g, h
