"""The errors of the dialect, over HTTP and in a session."""

from __future__ import annotations

from typing import Any

from streaming_server.api.elevenlabs.schemas import ElevenLabsError
from streaming_server.api.http import ErrorShape, MalformedBody
from streaming_server.errors import (
    BlankText,
    EngineNotReady,
    InvalidRequest,
    SessionTimeout,
    SpeechServerError,
    TextTooLong,
    Unauthorized,
    VoiceUnknown,
)

POLICY_VIOLATION = 1008
_WORDS: tuple[tuple[type[SpeechServerError], str], ...] = (
    (Unauthorized, "invalid_api_key"),
    (VoiceUnknown, "voice_not_found"),
    (BlankText, "text_empty"),
    (TextTooLong, "text_too_long"),
    (SessionTimeout, "input_timeout_exceeded"),
)
_BY_FIELD = {"output_format": "invalid_output_format", "voice_settings": "invalid_voice_settings"}
_SENTENCES: dict[type[SpeechServerError], str] = {
    BlankText: "text is empty",
    EngineNotReady: "the model is loading; try again later",
}


class TooManyContexts(InvalidRequest):
    """A session opens one context more than it may."""

    code = "max_active_conversations"


def word_of(error: SpeechServerError) -> str:
    """The dialect's word for an error."""
    for kind, word in _WORDS:
        if isinstance(error, kind):
            return word
    if isinstance(error, InvalidRequest) and error.field in _BY_FIELD:
        return _BY_FIELD[error.field]
    return "system_busy" if error.retryable else error.code


def error_message(error: SpeechServerError, code: int = POLICY_VIOLATION, **fields: Any) -> dict[str, Any]:
    """The message of a session; ``code`` is that of the close which follows one without ``contextId``."""
    return {"message": _SENTENCES.get(type(error), str(error)), "error": word_of(error), "code": code, **fields}


def _error_body(status: int, message: str, error: SpeechServerError | None) -> ElevenLabsError:
    if isinstance(error, MalformedBody):
        return {"detail": [*error.problems]}
    if error is None:
        return {"detail": {"status": "not_found" if status == 404 else "error", "message": message}}
    return {"detail": {"status": word_of(error), "message": _SENTENCES.get(type(error), message)}}


ERRORS = ErrorShape(
    _error_body,
    ElevenLabsError,
    statuses={MalformedBody: 422, VoiceUnknown: 404},
    key_fields=("xi-api-key", "xi_api_key", "authorization"),
)
