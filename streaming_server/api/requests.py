"""The request fields that several dialects share, and the builder of `SpeechRequest`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from streaming_server.api.http import Body, check_text
from streaming_server.api.operations import MAX_TEXT_CHARACTERS
from streaming_server.api.references import References
from streaming_server.domain import (
    EMOTIONS,
    Capability,
    Emotion,
    EmotionVector,
    Generation,
    Granularity,
    Pronunciation,
    Span,
    SpeechRequest,
    TextPieces,
    Voice,
    language_tag,
)
from streaming_server.errors import InvalidRequest
from streaming_server.logs import request_id
from streaming_server.settings import Settings
from streaming_server.speech.dialogue import PLAIN, Cutting, as_dialogue, is_dialogue, script_of
from streaming_server.speech.markup import check_pauses, joined, placed, with_pauses
from streaming_server.speech.service import SpeechService
from streaming_server.speech.ssml import parse
from streaming_server.speech.voices import VoiceLibrary

MAX_SPEAKERS = 64
"""Maximum number of voices of one request."""

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
"""Text to synthesise. `check_text` enforces the limits: one is a setting, and blank text has its own message."""
Name = Annotated[str, Field(max_length=1024)]
"""Name of a voice, a file or a model."""
Names = Annotated[str, Field(max_length=4096)]
"""Names of voices, separated by commas."""
Description = Annotated[str, Field(max_length=4096)]
"""Description of an emotion or a style."""
EmotionNumbers = Annotated[list[Share], Field(min_length=len(EMOTIONS), max_length=len(EMOTIONS), fail_fast=True)]


class SamplingBody(Body):
    do_sample: bool = True
    top_p: Share = 0.95
    top_k: Annotated[int, Field(ge=0)] = 30
    temperature: PositiveFloat = 1.2
    length_penalty: float = 0.0
    num_beams: Annotated[int, Field(ge=1, le=10)] = 3
    """Ignored by token streams, which sample with one beam."""
    repetition_penalty: PositiveFloat = 10.0
    max_mel_tokens: PositiveInt = 600
    """Maximum number of audio codes per sentence, up to the model's own limit."""

    def generation(self) -> Generation:
        """The fields of the body that `Generation` has."""
        names = Generation.__dataclass_fields__.keys() & type(self).model_fields
        is_given = not self.model_fields_set.isdisjoint({"temperature", "top_k"})
        return Generation(**{name: getattr(self, name) for name in names}, is_sampling_given=is_given)


def voice_names(names: str, field: str) -> list[str]:
    """Split a comma-separated list of names.

    Raises:
        InvalidRequest: the list has more than `MAX_SPEAKERS` names.
    """
    found = [name.strip() for name in names.split(",")]
    if len(found) > MAX_SPEAKERS:
        raise InvalidRequest(f"{field} names {len(found)} voices; at most {MAX_SPEAKERS} are allowed", field)
    return found


@dataclass(frozen=True, slots=True)
class EmotionFields:
    """The emotion fields of a dialect: the name and the value of each."""

    reference: tuple[str, str | None]
    vector: tuple[str, Sequence[float] | None]
    text: tuple[str, str | None]
    weight: float = 1.0
    random: bool = False

    def by_method(self, method: int) -> str | None:
        """Return the field that ``emo_control_method`` selects; None for the voice's own emotion.

        Raises:
            InvalidRequest: the field is missing.
        """
        if method == 0:
            return None
        field, value = (self.reference, self.vector, self.text)[method - 1]
        if not value or (isinstance(value, str) and not value.strip()):
            raise InvalidRequest(f"{field} is required if emo_control_method is {method}", field)
        return field

    def given(self) -> list[str]:
        """Return the fields with a value in order of precedence: text, vector, recording."""
        sources = (self.text, self.vector, self.reference)
        return [name for name, value in sources if (value.strip() if isinstance(value, str) else value)]


@dataclass(frozen=True, slots=True)
class RequestBuilder:
    """Builds the `SpeechRequest` of every dialect. A dialect maps its fields; checks and limits are here."""

    service: SpeechService
    voices: VoiceLibrary
    settings: Settings
    references: References

    def build(
        self,
        text: str | TextPieces | Sequence[Span],
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
        language: str = "",
        pronunciations: tuple[Pronunciation, ...] = (),
        for_worker: bool = False,
    ) -> SpeechRequest:
        """Build a request within the engine's limits.

        Args:
            text: the text, or the result of `ssml`; an incremental text is neither checked here nor split into turns.
            voices: the voice, or those of ``[SPEAKER0]``, ``[SPEAKER1]`` … in order.
            generation: sampling parameters.
            granularity: None for the engine's default.
            field: the dialect's name of the text field.
            place: location of the fields, ``body`` or ``query``.
            max_characters: the dialect's own limit, if it is below that of the settings.
            max_codes_field: the field in which the client set the number of codes, if it did; a value above the
                model's maximum is then an error.
            cutting: how to split the text if it is a script.
            with_tags: a text with tags is a dialogue if the setting ``dialogue`` is on. A single voice is then the
                first speaker, and the listed voices are the others.
            emotion: the result of `emotion`.
            speed: tempo.
            sentence_batch: number of sentences decoded together.
            verbose: log the request's details.
            scene: description of the scene.
            own_voices: the engine may choose the voices.
            language: a BCP 47 tag or the English name of a language; empty for the engine's choice.
            pronunciations: phonemes of parts of a text that is a string.
            for_worker: another process synthesises the text, whose engine may speak what this one cannot.

        Raises:
            InvalidRequest: the text is not valid or the engine cannot synthesise it, a speaker has no voice, or the
                number of codes is too large.
        """
        limit = self.settings.max_text_characters
        spans: tuple[Span, ...] = ()
        pieces: TextPieces | None = None
        if isinstance(text, str):
            whole = text
        elif isinstance(text, AsyncGenerator):
            whole, pieces = "", text
        else:
            spans = tuple(text)
            whole = joined(spans)
        if pieces is None:
            check_text(whole, min(limit, max_characters or limit), field, place)
            check_pauses(whole, field, place)
        max_codes = self.service.engine.info.max_mel_tokens
        if max_codes_field and max_codes is not None and generation.max_mel_tokens > max_codes:
            message = f"{max_codes_field} must be from 1 to {max_codes}, the model's own limit"
            raise InvalidRequest(message, max_codes_field, place)
        is_script = (cutting is not None or len(voices) > 1) and not spans
        script = script_of(whole, voices, cutting or PLAIN, field) if is_script else ()
        request = SpeechRequest(
            whole,
            script[0][0].voice if cutting else voices[0],
            generation,
            granularity,
            sentence_batch,
            verbose,
            request_id.get() or "",
            emotion,
            speed,
            script,
            scene,
            own_voices,
            spans,
            pieces,
            language_tag(language),
            pronunciations,
        )
        if with_tags and not script and not spans and self.settings.dialogue:
            request = as_dialogue(request, self.voices.list(), field)
        if not for_worker and (problem := self.service.refusal(request)):
            raise InvalidRequest(f"{field} {problem}", field, place)
        return request

    def ignored(
        self, request: SpeechRequest, language_field: str = "language", description_field: str = "instructions"
    ) -> list[str]:
        """What a request asks for and the engine cannot do.

        Args:
            request: the request.
            language_field: the dialect's name of the field of the language.
            description_field: the dialect's name of the field of an emotion in words.
        """
        info = self.service.engine.info
        languages = {span.language for span in request.spans} - {""}
        given = request.pronunciations or any(span.pronunciations for span in request.spans)
        emotion = request.emotion or Emotion()
        found = {
            description_field: emotion.text and Capability.EMOTION_TEXT not in info.capabilities,
            "emo_vector": emotion.vector and Capability.EMOTION_VECTOR not in info.capabilities,
            "emo_audio": emotion.reference and Capability.EMOTION_REFERENCE not in info.capabilities,
            "seed": request.generation.seed is not None and Capability.SEED not in info.capabilities,
            language_field: request.language and not info.reads(request.language),
            "ssml.lang": not all(map(info.reads, languages)),
            "ssml.phoneme": given and Capability.PHONEMES not in info.capabilities,
        }
        return [name for name, is_ignored in found.items() if is_ignored]

    def has_speakers(self, text: str) -> bool:
        """Whether a text is a dialogue under the setting ``dialogue``."""
        return self.settings.dialogue and is_dialogue(text)

    async def ssml(
        self, text: str, find: Callable[[str, str], Awaitable[Voice]], field: str = "text"
    ) -> Sequence[Span]:
        """Parse a text that is declared to be SSML, for `build`.

        Args:
            text: an SSML document.
            find: finds a voice by name; its second argument is the field.
            field: the dialect's name of the text field.

        Raises:
            InvalidRequest: the text is not valid SSML, names too many voices or one that does not exist.
        """
        check_text(text, self.settings.max_text_characters, field)
        passages = parse(text, field)
        names = dict.fromkeys(passage.voice for passage in passages if passage.voice)
        if len(names) > MAX_SPEAKERS:
            raise InvalidRequest(f"{field} names {len(names)} voices; at most {MAX_SPEAKERS} are allowed", field)
        voices = {name: await find(name, field) for name in names}
        spans = [replace(passage.span, voice=voices.get(passage.voice)) for passage in passages]
        return placed(with_pauses(spans))

    async def emotion(
        self, fields: EmotionFields, field: str | None, find: Callable[[str, str], Awaitable[Voice]]
    ) -> Emotion | None:
        """Build the emotion from one of the fields; None if no field is selected.

        Args:
            fields: the emotion fields.
            field: the selected field.
            find: finds a voice by name; its second argument is the field.

        Raises:
            InvalidRequest: the description is invalid, or ``find`` raised it.
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


def emotion_vector(numbers: Sequence[float]) -> EmotionVector:
    """Convert eight numbers, whose count is validated, and limit each to 1."""
    a, b, c, d, e, f, g, h = (min(number, 1.0) for number in numbers)
    return a, b, c, d, e, f, g, h
