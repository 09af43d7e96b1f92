"""The error shapes of the OpenAI dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from streaming_server.api.http import ErrorShape
from streaming_server.api.operations import described
from streaming_server.errors import InvalidRequest, SpeechServerError, VoiceNotFound


@described
class OpenAIErrorDetail(TypedDict):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    """The invalid field."""
    code: str | None


@described
class OpenAIError(TypedDict):
    error: OpenAIErrorDetail
    success: NotRequired[Literal[False]]
    """For uploaded voices that do not exist."""


class TtsError(TypedDict):
    status: Literal["error"]
    error: str


def error_body(status: int, message: str, error: SpeechServerError | None) -> OpenAIError:
    """Return an error in OpenAI's shape with all four keys."""
    code = "invalid_api_key" if status == 401 else None
    param = error.field or None if isinstance(error, InvalidRequest) and error.place == "body" else None
    body: OpenAIError = {
        "error": {
            "message": message,
            "type": "server_error" if status >= 500 else "invalid_request_error",
            "param": param,
            "code": code,
        }
    }
    if isinstance(error, VoiceNotFound):
        body["success"] = False
    return body


def tts_error_body(status: int, message: str, error: SpeechServerError | None) -> TtsError:
    """Return an error in the shape of ``/tts_url`` and ``/tts``."""
    return {"status": "error", "error": message}


ERRORS = ErrorShape(error_body, OpenAIError)
TTS_ERRORS = ErrorShape(tts_error_body, TtsError)
SHAPES: Mapping[str, ErrorShape] = dict.fromkeys(
    ("/v1/audio", "/v1/models", "/models", "/audio/voices", "/audio/voice_consents"), ERRORS
)
PATH_SHAPES: Mapping[str, ErrorShape] = {"/audio/speech": ERRORS, "/tts_url": TTS_ERRORS, "/tts": TTS_ERRORS}
