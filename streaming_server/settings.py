"""The settings of the server, in groups: their names, defaults and ranges. Each engine has its own beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from streaming_server.engines.registry import variables
from streaming_server.environment import SettingsGroup


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0.001)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Separated by commas."""


class ServerSettings(SettingsGroup):
    """Where the server listens, who may ask, and what a client may hold before its request is complete."""

    host: str = "0.0.0.0"
    """Address to listen on."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one."""
    api_keys: Names = ()
    """Keys of which one is needed, separated by commas; empty lets everybody in."""
    cors_origins: Names = ("*",)
    """Origins whose pages may call the server, separated by commas."""
    agent_port: Port = 0
    """Port on which a gateway learns how many requests it may send (HAProxy's `agent-check`); 0 opens none."""
    fleet: Names = ()
    """Base URLs of all servers behind one gateway, separated by commas, for `/opus_queue_status?fleet=1`."""
    max_connections: PositiveInt = 768
    """Most open connections; never more than three quarters of the process's descriptors."""
    max_connections_per_address: PositiveInt = 256
    """Most open connections of one client address."""
    header_timeout_s: Seconds = 10.0
    """Longest time for the head of a request, in seconds."""
    body_timeout_s: Seconds = 30.0
    """Longest time without a byte of a request's body, in seconds."""
    body_min_rate: NonNegativeInt = 1024
    """Slowest body, in bytes a second on average, once it has taken `BODY_TIMEOUT_S`."""
    shutdown_timeout_s: NonNegativeInt = 30
    """Seconds that running streams get to end at shutdown."""
    log_file: str = "api_server.log"
    """File in `DATA_DIR` that the log is kept in, as well as on the console; `none` keeps none."""


class EngineSettings(SettingsGroup):
    """Which engine runs, and the voices and texts that it is given."""

    engine: str = "auto"
    """`auto` (a model where there is one, else hibari) or the name of an engine: {engines}."""
    engine_options: Annotated[Mapping[str, str], Field(exclude=True)] = {}
    """The variables of the engines' own options that are set; the chosen engine reads those that it has."""
    reference_audio_dir: Path = Path("reference_audios")
    """Folder of the reference recordings."""
    voice_prompts_dir: Path = Path("examples/voice_prompts")
    """Folder of further voices for the HiggsAudio dialect, listed before the reference recordings."""
    scene_prompts_dir: Path = Path("examples/scene_prompts")
    """Folder of the scenes, one text file each."""
    max_text_characters: PositiveInt = 20000
    """Longest text of one request."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 2048
    """Most audio codes of one piece of text where a HiggsAudio request names no number."""
    dialogue: bool = False
    """`true`: `[SPEAKER0]`, `[SPEAKER1]` … in a text of the native and OpenAI dialects are speakers too."""
    openai_default_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    """Format of `/v1/audio/speech` where the request names none: `mp3`, `opus`, `aac`, `flac`, `wav` or `pcm`."""


class StreamSettings(SettingsGroup):
    """How audio is encoded, held and sent."""

    encode_threads: PositiveInt = os.cpu_count() or 1
    """Threads that encode audio."""
    unsent_stream_mb: PositiveInt = 512
    """Most audio that one stream may hold unsent, in MiB; then its connection is cut."""
    unsent_total_mb: PositiveInt = 2048
    """Most unsent audio of all streams together, in MiB; then the connection that holds most is cut."""
    send_timeout_s: Seconds = 300.0
    """A reader that takes nothing for this many seconds is cut off."""
    resume_keep_s: Annotated[float, Field(ge=0)] = 300.0
    """How long a stream can be continued after its connection broke, in seconds; 0 keeps none."""
    resume_grace_s: Annotated[float, Field(ge=0)] = 10.0
    """How long a synthesis goes on without its client where the request said `X-Resumable: true`, in seconds."""
    resume_max_streams: NonNegativeInt = 64
    """Most streams kept for that."""
    resume_total_mb: NonNegativeInt = 256
    """Most audio kept for that, in MiB."""


class QueueSettings(SettingsGroup):
    """Who waits for the engine, and for how long."""

    max_queue: NonNegativeInt = 32
    """Most requests that may wait for the slot."""
    queue_timeout_s: Seconds = 120.0
    """Longest wait for the slot, in seconds."""
    queue_preview: bool = True
    """`off`: the queue's status does not show the beginning of the text that is being synthesised."""
    live_first: bool = True
    """A live request that waits for the slot goes before a task that waits; `false`: by arrival."""


class JobSettings(SettingsGroup):
    """Tasks and workflows."""

    celery_broker_url: str = ""
    """Redis or RabbitMQ by which tasks reach workers: `redis://host/0`, `amqp://host`; empty: the server does them."""
    max_pending_tasks: PositiveInt = 1000
    """Most tasks that may be pending."""
    task_lease_s: Annotated[float, Field(ge=1)] = 6.0
    """A task whose process is not heard of for this many seconds is taken over by another."""
    max_task_attempts: PositiveInt = 5
    """Attempts of a task whose engine fails or whose process dies; then it fails."""
    workflow_wait_s: Seconds = 600.0
    """Longest wait for a workflow's end, in seconds."""
    storage_wait_s: Seconds = 120.0
    """How long a workflow waits for storage that is full or away before it fails, in seconds; tasks wait on."""


class StorageSettings(SettingsGroup):
    """Where tasks, uploads and audio are, and for how long."""

    data_dir: Path = Path("data")
    """Folder of all that the server writes: uploads, tasks, audio."""
    database_url: str = ""
    """Where tasks and uploads are recorded: `postgresql://user@host/name`; empty for SQLite in the data directory."""
    files_url: str = ""
    """Where uploads, audio and workflow files lie: `s3://bucket/prefix` for machines that share no folder; empty for
    the data directory."""
    workflow_root: str = ""
    """Folder below which workflows read and write; empty for `workflows` in the data directory."""
    audio_keep_s: Annotated[float, Field(ge=1)] = 86400.0
    """How long a task and its audio are kept, in seconds."""
    upload_max_mb: PositiveInt = 50
    """Largest upload, in MiB."""
    upload_max_s: Annotated[float, Field(ge=1)] = 600.0
    """Longest upload, in seconds of audio."""
    upload_timeout_s: Seconds = 600.0
    """Longest time in which an upload is received, in seconds."""
    max_uploads: PositiveInt = 16
    """Most uploads received at once."""
    upload_keep_s: Annotated[float, Field(ge=1)] = 3600.0
    """How long an upload is kept, in seconds; one that a task needs stays until that has ended."""


GROUPS = (ServerSettings, EngineSettings, StreamSettings, QueueSettings, JobSettings, StorageSettings)


class Settings(ServerSettings, EngineSettings, StreamSettings, QueueSettings, JobSettings, StorageSettings):
    """All groups in one."""

    @property
    def log_path(self) -> Path | None:
        """Where the log is kept; None where it is not."""
        return None if self.log_file == "none" else self.data_dir / self.log_file

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Self:
        """As `SettingsGroup.from_env`, with the variables of the engines' options."""
        options = {name: environment[name] for name in variables() if environment.get(name, "").strip()}
        return super().from_env(environment).model_copy(update={"engine_options": options})
