"""Bodies, answers and operations of the task dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from streaming_server.api.http import Body
from streaming_server.api.operations import Answer, Operation, Parameter, Tag, described
from streaming_server.api.requests import (
    Description,
    EmotionNumbers,
    Name,
    PositiveInt,
    SamplingBody,
    Share,
    Text,
)
from streaming_server.domain import Generation
from streaming_server.jobs.store import Job, JobState

TAG = Tag("Tasks", "For batch clients: upload a voice, submit a text, poll, download. Accepted tasks survive restarts.")

TaskStatus = Literal["pending", "processing", "completed", "failed"]
_STATUSES: Mapping[JobState, TaskStatus] = {
    JobState.PENDING: "pending",
    JobState.RUNNING: "processing",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "failed",
}


class TaskBody(SamplingBody):
    text: Annotated[Text, Field(examples=["你好，欢迎使用语音合成。"])]
    """Text to synthesise; must not be blank."""
    prompt_audio_id: Annotated[Name, Field(examples=["voice_01"])]
    """The voice to clone: a `file_id` of an upload, or the name of a voice of the server."""
    emo_control_method: Annotated[int, Field(ge=0, le=3)] = 0
    """Source of the emotion: 0 the voice itself, 1 `emo_audio_id`, 2 `emo_vector`, 3 `emo_text`."""
    emo_audio_id: Name | None = None
    """Recording that provides the emotion, for method 1; values as for `prompt_audio_id`."""
    emo_audio_path: Name | None = None
    """Alternative name of `emo_audio_id`, used if that is missing; an id, not a path."""
    emo_weight: Share = 1.0
    """Strength of the emotion."""
    emo_vector: EmotionNumbers | None = None
    """Happy, angry, sad, afraid, disgusted, melancholic, surprised, calm, for method 2."""
    emo_text: Description | None = None
    """Description of the emotion, for method 3."""
    emo_random: bool = False
    """Sample the rendering of the emotion at random."""
    max_text_tokens_per_segment: PositiveInt = 120
    """Maximum number of tokens per segment; longer sentences are split."""

    @property
    def emotion_audio(self) -> tuple[str, str | None]:
        """The name and value of the field for the emotion's recording."""
        if self.emo_audio_id is None and "emo_audio_path" in self.model_fields_set:
            return "emo_audio_path", self.emo_audio_path
        return "emo_audio_id", self.emo_audio_id

    def generation(self) -> Generation:
        return replace(super().generation(), max_text_tokens_per_sentence=self.max_text_tokens_per_segment)


class TasksQuery(Body):
    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    """Maximum number of tasks in the answer."""
    offset: Annotated[int, Field(ge=0, le=2**62)] = 0
    """Number of newest tasks to skip."""
    status: TaskStatus | None = None
    """Only tasks with this status."""

    @property
    def states(self) -> list[JobState]:
        return [state for state, status in _STATUSES.items() if status == self.status]


class UploadForm(Body):
    file: bytes
    """A recording: wav, mp3, m4a or flac."""


class TaskError(TypedDict):
    success: Literal[False]
    message: str


@described
class TaskHealth(TypedDict):
    success: Literal[True]
    status: Literal["healthy"]
    model_loaded: Literal[True]
    timestamp: float
    """UNIX seconds."""


class Submitted(TypedDict):
    success: Literal[True]
    task_id: str
    status: TaskStatus
    message: str


@described
class TaskRecord(TypedDict):
    task_id: str
    status: TaskStatus
    progress: float
    """0.0-1.0."""
    message: str
    """The current step, or why the task waits or failed."""
    text_preview: str
    """Beginning of the text."""
    created_at: str
    started_at: str | None
    completed_at: str | None
    """Null until the task has ended, completed or failed."""
    expires_at: str | None
    """Time at which the task and its audio are deleted; null until the task has ended."""


class Task(TaskRecord):
    success: Literal[True]


class Tasks(TypedDict):
    success: Literal[True]
    tasks: list[TaskRecord]
    total: int


class Deleted(TypedDict):
    success: Literal[True]
    task_id: str
    message: str


@described
class FileRecord(TypedDict):
    success: Literal[True]
    file_id: str
    """The SHA-256 of the content."""
    filename: str
    size: int
    """In bytes."""
    format: str
    """`wav`, `mp3`, `m4a` or `flac`, detected from the content."""
    sample_rate: int
    """In Hz."""
    duration: float
    """In seconds."""
    created_at: str
    expires_at: str
    """Time from which the file is deleted, unless a task that has not ended, a stored voice or a consent uses it."""


class Uploaded(FileRecord):
    is_duplicate: bool


def task_record(job: Job, keep_s: float) -> TaskRecord:
    """Return the record of a job that is kept for ``keep_s`` after its end."""
    return {
        "task_id": job.id,
        "status": _STATUSES[job.state],
        "progress": round(job.progress, 3),
        "message": job.message,
        "text_preview": job.preview,
        "created_at": iso(job.created_s),
        "started_at": iso(job.started_s) if job.started_s else None,
        "completed_at": iso(job.ended_s) if job.ended_s else None,
        "expires_at": iso(job.ended_s + keep_s) if job.ended_s else None,
    }


def iso(unix_s: float) -> str:
    """Format a time as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_TASK_ID = Parameter("task_id", "path", "The `task_id` of an answer.")
_WAV = Answer("A WAV file, 16-bit mono at the model's rate.", None, ["audio/wav"])

HEALTH = Operation("Whether the model is ready", [Answer("The model is ready.", TaskHealth)], refusals=[503])
SUBMIT = Operation(
    "Queue a text",
    [Answer("The task is stored and will run, also after a restart.", Submitted)],
    TaskBody,
    refusals=[404, 503, 507],
)
SYNC = Operation("Synthesise a text", [_WAV], TaskBody, refusals=[404, 500, 503])
TASK = Operation("Status of a task", [Answer("The current status.", Task)], parameters=[_TASK_ID], refusals=[404])
DELETE = Operation(
    "Delete a task and its audio",
    [Answer("The task is deleted; a pending or running one was cancelled first.", Deleted)],
    parameters=[_TASK_ID],
    refusals=[404],
)
AUDIO = Operation("The audio of a task", [_WAV], parameters=[_TASK_ID], refusals=[400, 404, 416])
TASKS = Operation("The tasks", [Answer("Newest first; `total` counts all that match.", Tasks)], TasksQuery)
UPLOAD = Operation(
    "Upload a recording",
    [Answer("The recording is stored, once for the same content.", Uploaded)],
    UploadForm,
    "multipart/form-data",
    refusals=[507],
)
FILE = Operation(
    "Record of an upload",
    [Answer("Its record.", FileRecord)],
    parameters=[Parameter("file_id", "path", "The `file_id` of an upload: 64 hex digits.")],
    refusals=[400, 404],
)
