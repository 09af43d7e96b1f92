"""The exception tree. `streaming_server.api.http` maps it to status codes.

SpeechServerError
├── InvalidRequest          a field of the request is missing or not valid
│   ├── BlankText
│   ├── VoiceIndexOutOfRange
│   ├── VoiceUnknown
│   └── TextTooLong
├── VoiceFileMissing        a reference recording does not exist any more
├── VoiceUnreadable         a reference recording cannot be decoded or analysed
├── EngineNotReady          the model is still loading
├── EngineFailed            the engine failed; the details are in the log
│   └── DeviceFailed        the device fails every request until the process is restarted
├── EngineUnavailable       an engine cannot start: a missing file, package or device
├── Unauthorized            an API key is missing or wrong
├── ShuttingDown            the server is shutting down
├── QueueFull               the queue holds its maximum of waiting requests
├── QueueTimeout            a request waited for the slot longer than the limit
├── RecordingRefused        an upload is not a recording of an allowed format
├── UploadNotFound          an upload does not exist or has expired
├── VoiceNotFound           a stored voice does not exist
├── ConsentNotFound         a stored consent does not exist
├── UploadTooLarge          an upload exceeds the limit
├── UploadTimeout           an upload took longer than the limit
├── TooManyUploads          the maximum number of uploads is being received
├── LoopbackOnly            the route is restricted to this machine
├── OriginRefused           an upload comes from an origin that is not allowed
├── JobNotFound             a job does not exist or has expired
├── JobQueueFull            more tasks would be pending than the limit allows
├── LeaseLost               a job was cancelled, deleted or taken over while it ran
├── FileMissing             a stored file does not exist any more
├── FileOutside             a path resolves outside its folder, or cannot name a file
├── InsufficientMemory      the device has not enough memory for this text
├── StorageFull             the disk or the database has no space left
├── StorageUnavailable      a database or folder cannot be used
├── AudioTooLarge           a whole file would exceed the limit of unsent audio
├── ReaderTooSlow           unsent audio reached its limit
├── ClientLeft              the synthesis ended with its last reader
└── StreamNotFound          a stream does not exist or has expired
"""

from __future__ import annotations

from collections.abc import Sequence


class SpeechServerError(Exception):
    """Root of the tree. Its message may be shown to a client; ``message`` is the default."""

    code = "server_error"
    message = ""
    retryable = False

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.message)


class InvalidRequest(SpeechServerError):
    """A field of the request is missing or outside its valid range."""

    code = "invalid_request"

    def __init__(self, message: str, field: str, place: str = "body") -> None:
        """``place``: where the field stands, ``body``, ``query`` or ``header``."""
        super().__init__(message)
        self.field = field
        self.place = place


class BlankText(InvalidRequest):
    code = "blank_text"

    def __init__(self, field: str = "text") -> None:
        super().__init__(f"{field} must not be blank", field)


class TextTooLong(InvalidRequest):
    code = "text_too_long"

    def __init__(self, length: int, limit: int, field: str = "text", place: str = "body") -> None:
        super().__init__(f"{field} has {length} characters; at most {limit} are allowed", field, place)


class ForbiddenCharacter(InvalidRequest):
    """A character that cannot be synthesised."""

    def __init__(self, character: str, position: int, field: str = "text", place: str = "body") -> None:
        super().__init__(
            f"{field} has {character} at position {position}: control characters other than tab and line breaks, "
            "and lone surrogates, are not allowed",
            field,
            place,
        )


class VoiceIndexOutOfRange(InvalidRequest):
    code = "voice_index_out_of_range"

    def __init__(self, index: int, count: int) -> None:
        field = "reference_audio_index"
        valid = f"valid: 0-{count - 1}" if count else "the reference folder has no recordings"
        super().__init__(f"{field} {index} is out of range; {valid}", field)
        self.index = index
        self.count = count


class VoiceUnknown(InvalidRequest):
    code = "voice_unknown"

    def __init__(self, name: str, known: Sequence[str], field: str = "voice") -> None:
        super().__init__(f"unknown {field} {name[:80]!r}; the voices are: {', '.join(known)}", field)


class VoiceFileMissing(SpeechServerError):
    code = "voice_file_missing"

    def __init__(self, filename: str) -> None:
        super().__init__(f"the reference audio {filename} does not exist")
        self.filename = filename


class VoiceUnreadable(SpeechServerError):
    code = "voice_unreadable"

    def __init__(self, filename: str, problem: str = "cannot be decoded") -> None:
        super().__init__(f"the reference audio {filename} {problem}")


class EngineNotReady(SpeechServerError):
    code = "engine_not_ready"
    retryable = True
    message = "the model is not loaded"


class SessionTimeout(SpeechServerError):
    code = "session_timeout"

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} within {seconds:g} s")


class EngineFailed(SpeechServerError):
    code = "engine_failed"
    message = "the speech engine failed; see the server's log"


class DeviceFailed(EngineFailed):
    code = "device_failed"
    retryable = True
    exit_status = 75
    """Of the process that ends because of it: EX_TEMPFAIL of sysexits.h."""

    def __init__(self) -> None:
        super().__init__("the device of the speech engine failed; the server restarts; try again later")


class EngineUnavailable(SpeechServerError):
    code = "engine_unavailable"


class Unauthorized(SpeechServerError):
    code = "invalid_api_key"
    message = "a valid API key is required: Authorization: Bearer <key>, or X-API-Key: <key>"


class ShuttingDown(SpeechServerError):
    code = "shutting_down"
    retryable = True
    message = "the server is shutting down; try again later"


class AudioTooLarge(SpeechServerError):
    code = "audio_too_large"
    message = "the audio is too large to be returned as a whole; request a stream"


class QueueFull(SpeechServerError):
    code = "queue_full"
    retryable = True

    def __init__(self, limit: int) -> None:
        super().__init__(f"the queue is full: {limit} requests are waiting; try again later")


class QueueTimeout(SpeechServerError):
    code = "queue_timeout"
    retryable = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no free slot within {seconds:g} s; try again later")


class ReaderTooSlow(SpeechServerError):
    code = "reader_too_slow"


class ClientLeft(SpeechServerError):
    code = "client_left"
    message = "the client disconnected"


class StreamNotFound(SpeechServerError):
    code = "stream_not_found"
    message = "stream not found or expired"


class RecordingRefused(SpeechServerError):
    code = "recording_refused"


class UploadNotFound(SpeechServerError):
    code = "upload_not_found"

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"file {upload_id[:64]} not found or expired; upload it first")


class VoiceNotFound(SpeechServerError):
    code = "voice_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"voice {name[:80]!r} not found")


class ConsentNotFound(SpeechServerError):
    code = "consent_not_found"

    def __init__(self, consent_id: str) -> None:
        super().__init__(f"consent {consent_id[:80]!r} not found")


class UploadTooLarge(SpeechServerError):
    code = "upload_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the file is larger than {limit_bytes / 2**20:g} MiB")


class UploadTimeout(SpeechServerError):
    code = "upload_timeout"
    retryable = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the upload was not complete within {seconds:g} s")


class TooManyUploads(SpeechServerError):
    code = "too_many_uploads"
    retryable = True

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} uploads are being received; try again later")


class OriginRefused(SpeechServerError):
    code = "origin_refused"

    def __init__(self, origin: str) -> None:
        super().__init__(f"the origin {origin[:80]!r} is not allowed; CORS_ORIGINS lists the allowed origins")


class LoopbackOnly(SpeechServerError):
    code = "loopback_only"
    message = "without API_KEYS this route is restricted to direct requests from this machine"


class JobNotFound(SpeechServerError):
    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"task {job_id[:64]!r} not found or expired")


class JobQueueFull(SpeechServerError):
    code = "job_queue_full"
    retryable = True

    def __init__(self, limit: int) -> None:
        super().__init__(f"the queue is full: at most {limit} tasks may be pending; try again later")


class LeaseLost(SpeechServerError):
    code = "lease_lost"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the task {job_id} was cancelled, deleted or taken over")


class FileMissing(SpeechServerError):
    code = "file_missing"

    def __init__(self, name: str) -> None:
        super().__init__(f"the file {name} does not exist any more")


class FileOutside(SpeechServerError):
    code = "file_outside"
    message = "the path resolves outside its folder, is a folder, or is not a valid file name"


class InsufficientMemory(SpeechServerError):
    code = "insufficient_memory"
    retryable = True
    message = "the device has not enough memory for this text; try a shorter text, or try again later"


class StorageFull(SpeechServerError):
    code = "storage_full"
    message = "no space left on the server's disk; try again later"


class StorageUnavailable(SpeechServerError):
    code = "storage_unavailable"
    retryable = True
