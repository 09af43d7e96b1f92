"""Bodies, answers and operations of uploaded voices and consents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from streaming_server.api.http import Body
from streaming_server.api.operations import Answer, Operation, Parameter, described
from streaming_server.api.requests import Name

MAX_SAMPLE_BYTES = 10 * 1024 * 1024
"""Maximum size of a recording of a voice or a consent, as in OpenAI's API."""
MEDIA_TYPES: Mapping[str, str] = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "flac": "audio/flac",
    "m4a": "audio/mp4",
    "ogg": "audio/ogg",
    "webm": "audio/webm",
    "aac": "audio/aac",
}
"""Media types by format of an upload."""
_PRINTABLE = r"\u0000-\u001f\u007f-\u009f"
Title = Annotated[
    str, Field(min_length=1, max_length=100, pattern=rf"^[^{_PRINTABLE}]*[^{_PRINTABLE}\s][^{_PRINTABLE}]*$")
]
"""A label: 1 to 100 printable characters, not blank."""
VoiceTitle = Annotated[
    str, Field(min_length=1, max_length=100, pattern=rf"^[^{_PRINTABLE},]*[^{_PRINTABLE},\s][^{_PRINTABLE},]*$")
]
"""Like `Title`, without commas, which separate the names of voices."""


class VoiceForm(Body):
    audio_sample: bytes | None = None
    """Required: a recording (wav, mp3, m4a, flac, ogg, opus, webm or aac) of at most 10 MiB."""
    consent: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"\S", examples=["recorded with permission"])]
    """The id of a consent (`cons_…`), or a statement of consent."""
    name: Annotated[VoiceTitle, Field(examples=["narrator"])]
    """Unique name of the voice, without commas."""
    type: Literal["audio_sample"] = "audio_sample"
    """Voices are not created from prompts."""
    ref_text: Annotated[str, Field(max_length=4096)] | None = None
    """Transcript of the recording."""
    speaker_description: Annotated[str, Field(max_length=4096)] | None = None
    """Stored with the voice."""


class VoicesQuery(Body):
    legacy: bool = False
    """`true`: only the names, as strings."""


class ConsentForm(Body):
    recording: bytes | None = None
    """Required: a recording (wav, mp3, m4a, flac, ogg, opus, webm or aac) of at most 10 MiB."""
    name: Annotated[Title, Field(examples=["Jane's consent"])]
    """A label."""
    language: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9-]+$", examples=["en-US"])]
    """BCP 47 tag of the recording's language."""


class ConsentName(Body):
    name: Annotated[Title, Field(examples=["Jane's consent"])]
    """The new label."""


class ConsentsQuery(Body):
    after: Name | None = None
    """Only consents after the one with this id."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    """Maximum number of consents in the answer."""


class ListedVoice(TypedDict):
    id: str
    name: str
    language: str


@described
class UploadedVoice(TypedDict):
    id: str
    name: str
    consent: str
    created_at: int
    """UNIX seconds."""
    mime_type: str
    file_size: int
    """In bytes."""
    ref_text: NotRequired[str]
    speaker_description: NotRequired[str]


@described
class Voices(TypedDict):
    voices: list[ListedVoice] | list[str]
    """With `legacy=true`, the names alone."""
    uploaded_voices: NotRequired[list[UploadedVoice]]


@described
class CreatedVoice(TypedDict):
    id: str
    object: Literal["audio.voice"]
    name: str
    type: Literal["audio_sample"]
    created_at: int
    """UNIX seconds."""
    success: Literal[True]
    voice: UploadedVoice


class VoiceDeleted(TypedDict):
    id: str
    object: Literal["audio.voice.deleted"]
    deleted: Literal[True]
    success: Literal[True]
    message: str


@described
class Consent(TypedDict):
    id: str
    object: Literal["audio.voice_consent"]
    name: str
    language: str
    created_at: int
    """UNIX seconds."""


class Consents(TypedDict):
    object: Literal["list"]
    data: list[Consent]
    has_more: bool


class ConsentDeleted(TypedDict):
    id: str
    object: Literal["audio.voice_consent"]
    deleted: Literal[True]


_VOICE_ID = Parameter("voice_id", "path", "The id or the name of an uploaded voice.")
_CONSENT_ID = Parameter("consent_id", "path", "The id of a consent.")

LIST = Operation(
    "List the voices",
    [Answer("OpenAI's names first, then other voices, then uploads.", Voices)],
    VoicesQuery,
)
CREATE = Operation(
    "Add a voice from a recording",
    [Answer("The voice is stored until it is deleted, and can be named at once by its id and its name.", CreatedVoice)],
    VoiceForm,
    "multipart/form-data",
    refusals=[503, 507],
)
DELETE = Operation(
    "Delete an uploaded voice",
    [Answer("The voice is deleted; its consent stays.", VoiceDeleted)],
    parameters=[_VOICE_ID],
    refusals=[400, 404, 503, 507],
)
CREATE_CONSENT = Operation(
    "Store a recording of consent",
    [Answer("The consent is stored until it is deleted.", Consent)],
    ConsentForm,
    "multipart/form-data",
    refusals=[503, 507],
)
CONSENTS = Operation("List the consents", [Answer("Newest first.", Consents)], ConsentsQuery, refusals=[404, 503])
CONSENT = Operation("Get a consent", [Answer("The consent.", Consent)], parameters=[_CONSENT_ID], refusals=[404, 503])
RENAME = Operation(
    "Change the label of a consent",
    [Answer("The consent.", Consent)],
    ConsentName,
    parameters=[_CONSENT_ID],
    refusals=[404, 503, 507],
)
REVOKE = Operation(
    "Delete a consent",
    [Answer("The consent is deleted; voices that name it stay.", ConsentDeleted)],
    parameters=[_CONSENT_ID],
    refusals=[404, 503, 507],
)
