"""The settings of the server, in groups: names, defaults and ranges. Each engine defines further options."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from streaming_server.engines.registry import variables
from streaming_server.environment import SettingsGroup

log = logging.getLogger(__name__)


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = tuple(part.strip() for part in value.split(",") if part.strip())
    if value.strip() and not parts:  # such as "${KEY_A},${KEY_B}" of variables that are not set
        raise ValueError("no value between the commas")
    return parts


Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0.001)]
Retention = Annotated[float, Field(ge=1, le=2e11)]
"""In seconds; the time of expiry must be a valid date."""
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Separated by commas."""


class ServerSettings(SettingsGroup):
    """Address, access, and limits on connections and incomplete requests."""

    host: str = "0.0.0.0"
    """Address to listen on."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one."""
    api_keys: Names = ()
    """API keys, separated by commas; empty disables authentication."""
    metrics_key: str = ""
    """Key for `/metrics` alone, for Prometheus; empty: `/metrics` accepts the keys of `API_KEYS`, if any."""
    cors_origins: Names = ("*",)
    """Allowed CORS origins, separated by commas."""
    agent_port: Port = 0
    """Port of HAProxy's `agent-check`, which reports how many requests a gateway may send; 0 disables it."""
    mcp: bool = False
    """`true`: serve the Model Context Protocol at `/mcp`."""
    wyoming_port: Port = 0
    """Port of the Wyoming server for Home Assistant, on `HOST`; 0 disables it. It has no authentication."""
    wyoming_zeroconf: bool = False
    """`true`: announce the Wyoming server by zeroconf (mDNS), so that Home Assistant finds it."""
    fleet: Names = ()
    """Base URLs of all servers behind one gateway, separated by commas, for `/opus_queue_status?fleet=1`."""
    max_connections: PositiveInt = 768
    """Maximum number of open connections; at most three quarters of the process's file descriptors."""
    max_connections_per_address: PositiveInt = 256
    """Maximum number of open connections per client address."""
    header_timeout_s: Seconds = 10.0
    """Timeout for receiving the headers of a request, in seconds."""
    body_timeout_s: Seconds = 30.0
    """Timeout without data while receiving a request body, in seconds."""
    body_min_rate: NonNegativeInt = 1024
    """Minimum average rate of a request body after `BODY_TIMEOUT_S`, in bytes per second."""
    shutdown_timeout_s: NonNegativeInt = 30
    """Time for running streams to complete at shutdown, in seconds."""
    log_format: Literal["json", "text"] = "json"
    """`json`: one JSON object per line; `text`: one line for people."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged: `debug`, `info`, `warning` or `error`."""


class EngineSettings(SettingsGroup):
    """The engine, its voices, and limits on texts."""

    engine: str = "auto"
    """`auto` (the installed model, else hibari) or the name of an engine: {engines}."""
    engine_options: Annotated[Mapping[str, str], Field(exclude=True)] = {}
    """The variables of the engines' own options that are set; the chosen engine reads those that it has."""
    reference_audio_dir: Path = Path("reference_audios")
    """Folder of reference recordings."""
    voice_prompts_dir: Path = Path("examples/voice_prompts")
    """Folder of additional voices of the HiggsAudio dialect, listed before the reference recordings."""
    scene_prompts_dir: Path = Path("examples/scene_prompts")
    """Folder of scenes, one text file per scene."""
    ref_audio_hosts: Names = ()
    """Hosts from which the `ref_audio` of a request may be fetched, separated by commas; empty: URLs are refused."""
    max_text_characters: PositiveInt = 20000
    """Maximum length of a request's text, in characters; a request body has at most 2 MiB."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 2048
    """Default maximum number of audio codes per piece of text in the HiggsAudio dialect."""
    dialogue: bool = False
    """`true`: `[SPEAKER0]`, `[SPEAKER1]` … in texts of `/synthesize*`, `/v1/audio/speech`, `/tts_url`, `/tts` and MCP's
    `speak` also select speakers."""
    openai_default_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    """Default format of `/v1/audio/speech`: `mp3`, `opus`, `aac`, `flac`, `wav` or `pcm`."""


class StreamSettings(SettingsGroup):
    """Encoding, buffering and sending of audio."""

    unsent_total_mb: PositiveInt = 2048
    """Maximum unsent audio of all streams, in MiB; if exceeded, the stream with the most is aborted. A stream may
    hold a quarter of it, and audio kept for resuming may take another eighth."""
    send_timeout_s: Seconds = 300.0
    """Timeout after which a connection whose client reads nothing is aborted, in seconds."""
    resume_keep_s: Annotated[float, Field(ge=0)] = 300.0
    """Time for which a stream can be resumed after a disconnect, in seconds; 0 disables resuming."""
    resume_grace_s: Annotated[float, Field(ge=0)] = 10.0
    """Time for which synthesis continues after a disconnect with `X-Resumable: true`, in seconds."""


class QueueSettings(SettingsGroup):
    """Waiting for the engine."""

    max_concurrent: Annotated[int, Field(ge=1, le=64)] = 1
    """Maximum number of requests synthesised at the same time. Pocket TTS and HiggsAudio synthesise one. A further
    request starts only if the measured speed is sufficient for all, and it waits otherwise."""
    max_queue: NonNegativeInt = 32
    """Maximum number of requests that wait for the slot."""
    queue_timeout_s: Seconds = 120.0
    """Maximum wait for the slot, in seconds."""
    queue_preview: bool = True
    """`off`: the queue status omits the preview of the current text."""
    live_first: bool = True
    """`true`: waiting live requests take precedence over waiting tasks; `false`: in order of arrival."""


class JobSettings(SettingsGroup):
    """Tasks and workflows."""

    celery_broker_url: str = ""
    """Redis or RabbitMQ for workers: `redis://host/0`, `amqp://host`; empty: the server processes tasks itself."""
    max_pending_tasks: PositiveInt = 1000
    """Maximum number of pending tasks; each task of a workflow counts."""
    task_lease_s: Annotated[float, Field(ge=1)] = 6.0
    """Lease of a task, in seconds: without a heartbeat for this long, another process takes the task over."""
    max_task_attempts: PositiveInt = 5
    """Maximum number of attempts of a task whose engine fails or whose process dies."""
    workflow_wait_s: Seconds = 600.0
    """Maximum wait for the completion of a workflow, in seconds."""
    storage_wait_s: Seconds = 120.0
    """Time that a workflow waits for full or unavailable storage before it fails, in seconds; tasks keep waiting."""


class StorageSettings(SettingsGroup):
    """Storage of tasks, uploads and audio, and their retention."""

    data_dir: Path = Path("data")
    """Folder for the server's data: uploads, tasks, audio."""
    database_url: str = ""
    """Database of tasks and uploads: `postgresql://user@host/name`; empty: SQLite in the data directory."""
    files_url: str = ""
    """Storage of uploads, audio and workflow files: `s3://bucket/prefix` for machines without a shared folder; empty:
    the data directory."""
    workflow_root: str = ""
    """Root folder of workflow files; empty: `workflows` in the data directory."""
    audio_keep_s: Retention = 86400.0
    """Retention of a task and its audio, in seconds."""
    upload_max_mb: PositiveInt = 50
    """Maximum size of an upload, in MiB."""
    upload_max_s: Annotated[float, Field(ge=1)] = 600.0
    """Maximum duration of an uploaded recording, in seconds."""
    upload_timeout_s: Seconds = 600.0
    """Timeout for receiving an upload, in seconds."""
    max_uploads: PositiveInt = 16
    """Maximum number of uploads received concurrently."""
    upload_keep_s: Retention = 3600.0
    """Retention of an upload, in seconds; an upload that a task uses is kept until the task ends."""


REMOVED = {
    "ENCODE_THREADS": "one thread per core is used",
    "LOG_FILE": "the file is api_server.log in DATA_DIR",
    "UNSENT_STREAM_MB": "it is a quarter of UNSENT_TOTAL_MB",
    "RESUME_MAX_STREAMS": "it is 64",
    "RESUME_TOTAL_MB": "it is an eighth of UNSENT_TOTAL_MB",
    "INDEXTTS2_REFERENCE_S": "it is 5",
    "KOKORO_THREADS": "all cores are used",
    **dict.fromkeys(
        ("W2VBERT_DIR", "CAMPPLUS_FILE", "BIGVGAN_DIR", "SEMANTIC_CODEC_FILE"), "use INDEXTTS2_EXTERNAL_MODELS_DIR"
    ),
}
"""Variables of earlier versions, each with what applies instead."""


def warn_of_removed(environment: Mapping[str, str]) -> None:
    """Log each variable that is set and no longer read."""
    for name, instead in REMOVED.items():
        if environment.get(name, "").strip():
            log.warning("setting ignored: %s no longer exists: %s", name, instead)


GROUPS = (ServerSettings, EngineSettings, StreamSettings, QueueSettings, JobSettings, StorageSettings)


class Settings(ServerSettings, EngineSettings, StreamSettings, QueueSettings, JobSettings, StorageSettings):
    """All groups combined."""

    @property
    def log_path(self) -> Path:
        return self.data_dir / "api_server.log"

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Self:
        """Like `SettingsGroup.from_env`, including the variables of the engines' options."""
        options = {name: environment[name] for name in variables() if environment.get(name, "").strip()}
        return super().from_env(environment).model_copy(update={"engine_options": options})
