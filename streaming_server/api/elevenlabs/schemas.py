"""The bodies, queries, answers and operations of the dialect, from which ``/openapi.json`` is generated."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from streaming_server.api.elevenlabs.alignment import Alignment
from streaming_server.api.elevenlabs.formats import DEFAULT_FORMAT, OUTPUT_FORMATS
from streaming_server.api.elevenlabs.settings import VoiceSettings
from streaming_server.api.http import Body, Problem
from streaming_server.api.operations import (
    IGNORED_NOTE,
    SPEECH_REFUSALS,
    STREAM_HEADERS,
    Answer,
    Operation,
    Parameter,
    Tag,
    described,
)
from streaming_server.api.requests import Name, Seed, Text

TAG = Tag("ElevenLabs", "The API of ElevenLabs' clients; set their base URL to the root of this server.")
MAX_PAGE = 100


class TextToSpeechBody(Body):
    text: Annotated[Text, Field(examples=["Hello from the server."])]
    """Not blank; may have `<break time="1s"/>` and `<phoneme alphabet="ipa" ph="…">`."""
    voice_settings: VoiceSettings | None = None
    seed: Seed | None = None
    """With the same seed, a request gives the same audio on the same machine, if the engine supports it."""
    language_code: Name | None = None
    """The language of the text, for engines that have a choice; by default the text decides."""
    model_id: Name | None = None
    """Accepts any name; the loaded model is used."""


class SessionQuery(Body):
    """The query of the two WebSocket routes."""

    output_format: str = DEFAULT_FORMAT
    inactivity_timeout: Annotated[int, Field(ge=1, le=180)] = 20
    """In seconds."""
    auto_mode: bool = False
    """A message that ends in a sentence's mark is synthesised at once: the client sends whole sentences."""
    sync_alignment: bool = False
    """Times count from the start of the context, in place of the previous alignment's end."""
    enable_ssml_parsing: bool = False
    """Read `<break time="1s"/>` and `<phoneme alphabet="ipa" ph="…">` in the text."""
    language_code: Name | None = None
    seed: Seed | None = None


class VoicePageQuery(Body):
    page_size: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 10
    next_page_token: Annotated[str, Field(max_length=20, pattern=r"^[0-9]*$")] | None = None
    search: Annotated[str, Field(max_length=256)] | None = None
    """A part of the id or the name."""
    category: Annotated[str, Field(max_length=64)] | None = None
    gender: Annotated[str, Field(max_length=64)] | None = None
    language: Annotated[str, Field(max_length=64)] | None = None
    """A tag such as `de`; a voice without languages is listed for each."""
    sort: Annotated[str, Field(max_length=64)] | None = None
    """`name`; any other value keeps the server's order."""
    sort_direction: Literal["asc", "desc"] = "asc"


class ErrorDetail(TypedDict):
    status: str
    message: str


@described
class ElevenLabsError(TypedDict):
    detail: ErrorDetail | list[Problem]
    """With status 422, a list of problems by field."""


@described
class TimedSpeech(TypedDict):
    audio_base64: str
    alignment: Alignment | None
    """Null in a line whose audio ends no passage."""
    normalized_alignment: Alignment | None
    """The same as `alignment`."""
    alignment_precision: NotRequired[Literal["engine", "segment"]]
    """`engine`: measured; `segment`: the characters of a sentence share its time."""


class ElevenLabsVoice(TypedDict):
    voice_id: str
    name: str
    category: Literal["premade", "cloned"]
    labels: dict[str, str]
    description: str | None
    preview_url: str | None
    settings: dict[str, Any] | None


class ElevenLabsVoices(TypedDict):
    voices: list[ElevenLabsVoice]


@described
class VoicePage(TypedDict):
    voices: list[ElevenLabsVoice]
    has_more: bool
    total_count: int
    next_page_token: str | None


class ElevenLabsLanguage(TypedDict):
    language_id: str
    name: str


class ElevenLabsModel(TypedDict):
    model_id: str
    name: str
    description: str
    can_do_text_to_speech: bool
    can_do_voice_conversion: bool
    can_use_style: bool
    can_use_speaker_boost: bool
    can_be_finetuned: bool
    serves_pro_voices: bool
    token_cost_factor: float
    requires_alpha_access: bool
    max_characters_request_free_user: int
    max_characters_request_subscribed_user: int
    maximum_text_length_per_request: int
    languages: list[ElevenLabsLanguage]


class Subscription(TypedDict):
    tier: str
    character_count: int
    character_limit: int
    max_character_limit_extension: int | None
    can_extend_character_limit: bool
    allowed_to_extend_character_limit: bool
    voice_slots_used: int
    professional_voice_slots_used: int
    voice_limit: int
    voice_add_edit_counter: int
    professional_voice_limit: int
    can_extend_voice_limit: bool
    can_use_instant_voice_cloning: bool
    can_use_professional_voice_cloning: bool
    status: Literal["active"]
    has_open_invoices: bool
    open_invoices: list[Any]


_VOICE = Parameter("voice_id", "path", "An id of `GET /v1/voices`.", Annotated[str, Field(examples=["voice_01"])])
_FORMAT = Parameter(
    "output_format", "query", f"By default `{DEFAULT_FORMAT}`.", Annotated[str, Field(examples=list(OUTPUT_FORMATS))]
)
_MEDIA_TYPES = list(dict.fromkeys(create().media_type for create in OUTPUT_FORMATS.values()))
_REFUSALS = (*SPEECH_REFUSALS, 404, 422)

SPEECH = Operation(
    "Synthesise a text",
    [Answer(f"The audio, streamed. {IGNORED_NOTE}", None, _MEDIA_TYPES, STREAM_HEADERS)],
    TextToSpeechBody,
    parameters=[_VOICE, _FORMAT],
    refusals=_REFUSALS,
)
TIMED = Operation(
    "Synthesise a text, with the time of each character",
    [Answer("The audio and the times, after the last sample.", TimedSpeech)],
    TextToSpeechBody,
    parameters=[_VOICE, _FORMAT],
    refusals=_REFUSALS,
)
TIMED_STREAM = Operation(
    "Stream a text, with the time of each character",
    [Answer("One such object a line, during the synthesis.", TimedSpeech)],
    TextToSpeechBody,
    parameters=[_VOICE, _FORMAT],
    refusals=_REFUSALS,
)
VOICES = Operation("List the voices", [Answer("All of them.", ElevenLabsVoices)])
VOICE = Operation("Describe a voice", [Answer("The voice.", ElevenLabsVoice)], parameters=[_VOICE], refusals=[404])
VOICE_PAGES = Operation("List the voices, page by page", [Answer("A page.", VoicePage)], VoicePageQuery)
SUBSCRIPTION = Operation("Describe the account", [Answer("One without limits of its own.", Subscription)])
