"""Bodies, answers and operations of the workflow dialect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import TypedDict

from streaming_server.api.http import Body
from streaming_server.api.operations import Answer, Operation, Parameter, Tag, described
from streaming_server.api.requests import Description, EmotionNumbers, Name, PositiveInt, Share, Text
from streaming_server.jobs.inspection import SPEECH

TAG = Tag("Workflows", "Chains of tasks under their Celery names. They run in sequence and stop at the first failure.")
MONITORING_TAG = Tag("Monitoring", "Activity of the workers.")

ErrorCode = Literal[
    "INVALID_INPUT",
    "MODEL_NOT_READY",
    "QUEUE_FULL",
    "INSUFFICIENT_STORAGE",
    "GPU_UNAVAILABLE",
    "INSUFFICIENT_MEMORY",
    "TASK_TIMEOUT",
    "PROCESSING_ERROR",
    "NOT_FOUND",
    "UNAUTHORIZED",
]
Status = Literal["pending", "running", "completed", "failed"]


Path = Annotated[str, Field(max_length=4096)]


class SpeechConfig(Body):
    text: Text
    """Text to synthesise; must not be blank."""
    output_path: Path
    """Output file below the server's `WORKFLOW_ROOT`; a leading `/share` stands for that folder. The format is WAV for
    any name."""
    reference_audio: Path | None = None
    """Voice: a file below that folder, the name of a voice or preset, or the id of an upload; null: `default`."""
    emotion_reference: Path | None = None
    """Recording that provides the emotion; values as for `reference_audio`."""
    emotion_alpha: Share = 0.65
    """Strength of the emotion."""
    emotion_vector: EmotionNumbers | None = None
    """Happy, angry, sad, afraid, disgusted, melancholic, surprised, calm."""
    emotion_text: Description | None = None
    """Description of the emotion. A text takes precedence over a vector, and a vector over a reference."""
    use_random: bool = False
    """Sample the rendering of the emotion at random."""
    max_text_tokens_per_segment: PositiveInt = 120
    """Maximum number of tokens per segment; longer sentences are split."""


class WorkflowConfig(Body):
    workflow_chain: Annotated[list[Name], Field(min_length=1, max_length=100, fail_fast=True)]
    """Names of the tasks in order."""
    indextts_config: SpeechConfig | None = None
    """Required if the chain contains `indextts.generate_speech`; otherwise ignored."""

    @model_validator(mode="before")
    @classmethod
    def _unread(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        chain = content.get("workflow_chain")
        speaks = isinstance(chain, list) and SPEECH in chain
        return content if speaks else {name: content[name] for name in content if name != "indextts_config"}


_EXAMPLE = {
    "workflow_chain": [SPEECH],
    "indextts_config": {"text": "你好，欢迎使用语音合成。", "output_path": "/share/workflows/output/speech.wav"},
}


class WorkflowBody(Body):
    video_path: Path = ""
    """Stored with the workflow; the file is not opened."""
    workflow_config: Annotated[WorkflowConfig, Field(examples=[_EXAMPLE])]


@described
class WorkflowError(TypedDict):
    status: Literal["error"]
    error: str
    error_code: ErrorCode
    task_id: str | None
    workflow_id: str | None


class Accepted(TypedDict):
    status: Literal["pending"]
    workflow_id: str
    task_id: str


class Stage(TypedDict):
    name: str
    status: str
    started_at: str | None
    output: dict[str, Any]
    """`processing_time` of a running or completed stage, `error` and `error_code` of a failed one, `message` of one
    that waits for a retry."""


@described
class WorkflowStatus(TypedDict):
    workflow_id: str
    status: Status
    current_stage: str
    """The stage that is running or has failed; otherwise the last one."""
    progress: int
    """0-100."""
    stages: list[Stage]
    created_at: str
    updated_at: str


class Lock(TypedDict):
    lock_key: str
    locked: bool
    last_acquired: str | None
    expires_at: str | None


class Thresholds(TypedDict):
    min_success_rate: float
    max_timeout_rate: float


class LockHealth(TypedDict):
    status: Literal["healthy", "degraded"]
    total_locks: int
    active_locks: int
    locks: list[Lock]
    health_thresholds: Thresholds


class Heartbeat(TypedDict):
    task_id: str
    task_name: str
    worker_id: str
    last_heartbeat: str
    status: str


class Heartbeats(TypedDict):
    total_tasks: int
    active_tasks: int
    tasks: list[Heartbeat]


class SystemNumbers(TypedDict):
    total_tasks: int
    successful_tasks: int
    failed_tasks: int
    success_rate: float
    avg_processing_time: float


class GpuNumbers(TypedDict):
    utilization: float | None
    memory_used: str | None
    memory_total: str | None


class WorkerNumbers(TypedDict):
    total: int
    active: int
    idle: int


class WorkflowStatistics(TypedDict):
    system: SystemNumbers
    gpu: GpuNumbers
    workers: WorkerNumbers


class SpeechResult(TypedDict):
    """The result of generate_speech."""

    status: Literal["success"]
    workflow_id: str | None
    task_id: str
    output_path: str
    duration: float
    sample_rate: int
    text_length: int
    processing_time: float
    model_info: dict[str, str]
    parameters: dict[str, Any]


SUBMIT = Operation(
    "Run a chain of tasks",
    [
        Answer("The result of the last task, when the chain has ended.", dict[str, Any]),
        Answer("The chain is accepted, where `wait` is false.", Accepted, status=202),
    ],
    WorkflowBody,
    parameters=[Parameter("wait", "query", "Whether to answer when the chain has ended or at once.", bool)],
    refusals=[400, 404, 408, 500, 503, 507],
)
STATUS = Operation(
    "Status of a workflow",
    [Answer("The current status.", WorkflowStatus)],
    parameters=[Parameter("workflow_id", "path", "The `workflow_id` of an answer.")],
    refusals=[404],
)
LOCKS = Operation("Device locks", [Answer("One lock for each worker.", LockHealth)])
HEARTBEATS = Operation("Heartbeats of running tasks", [Answer("The latest tasks first.", Heartbeats)])
STATISTICS = Operation("Statistics of the stored tasks", [Answer("Counts, rates and durations.", WorkflowStatistics)])
