"""The settings of the server: their names, defaults and ranges. Each engine has its own beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from streaming_server.engines.registry import variables
from streaming_server.environment import setting, values_of


@dataclass(frozen=True, slots=True)
class Settings:
    """All there is to set; see the README for what each is for."""

    host: str = setting("0.0.0.0", "Address to listen on")
    port: int = setting(8000, "Port to listen on; 0 takes a free one", least=0, most=65535)
    engine: str = setting(
        "auto",
        "`auto` (a model where there is one, else espeak) or the name of an engine: {engines}",
    )
    engine_options: Mapping[str, str] = field(default_factory=dict)
    """The variables of the engines' own options that are set; the chosen engine reads those that it has."""
    reference_audio_dir: Path = setting(
        Path("reference_audios"),
        "Folder of the reference recordings",
    )
    data_dir: Path = setting(
        Path("data"),
        "Folder of all that the server writes: uploads, tasks, audio",
    )
    database_url: str = setting(
        "",
        "Where tasks and uploads are recorded: `postgresql://user@host/name`; empty for SQLite in the data directory",
    )
    files_url: str = setting(
        "",
        "Where uploads, audio and workflow files lie: `s3://bucket/prefix` for machines that share no folder; empty "
        "for the data directory",
    )
    workflow_root: str = setting(
        "",
        "Folder below which workflows read and write; empty for `workflows` in the data directory",
    )
    workflow_wait_s: float = setting(600.0, "Longest wait for a workflow's end, in seconds", least=0.001)
    celery_broker_url: str = setting(
        "",
        "Redis or RabbitMQ by which tasks reach workers: `redis://host/0`, `amqp://host`; empty: the server does them",
    )
    voice_prompts_dir: Path = setting(
        Path("examples/voice_prompts"),
        "Folder of further voices for the HiggsAudio dialect, listed before the reference recordings",
    )
    scene_prompts_dir: Path = setting(Path("examples/scene_prompts"), "Folder of the scenes, one text file each")
    max_new_tokens: int = setting(
        2048,
        "Most audio codes of one piece of text where a HiggsAudio request names no number",
        least=1,
        most=4096,
    )
    dialogue: bool = setting(
        False,
        "`true`: `[SPEAKER0]`, `[SPEAKER1]` … in a text of the native and OpenAI dialects are speakers too",
    )
    log_file: str = setting(
        "api_server.log",
        "File in `DATA_DIR` that the log is kept in, as well as on the console; `none` keeps none",
    )
    max_text_characters: int = setting(20000, "Longest text of one request", least=1)
    max_queue: int = setting(32, "Most requests that may wait for the slot", least=0)
    queue_timeout_s: float = setting(120.0, "Longest wait for the slot, in seconds", least=0.001)
    queue_preview: bool = setting(
        True,
        "`off`: the queue's status does not show the beginning of the text that is being synthesised",
    )
    live_first: bool = setting(
        True,
        "A live request that waits for the slot goes before a task that waits; `false`: by arrival",
    )
    max_pending_tasks: int = setting(1000, "Most tasks that may be pending", least=1)
    task_lease_s: float = setting(
        6.0,
        "A task whose process is not heard of for this many seconds is taken over by another",
        least=1,
    )
    max_task_attempts: int = setting(
        5, "Attempts of a task whose engine fails or whose process dies; then it fails", least=1
    )
    storage_wait_s: float = setting(
        120.0,
        "How long a workflow waits for storage that is full or away before it fails, in seconds; tasks wait on",
        least=0.001,
    )
    audio_keep_s: float = setting(86400.0, "How long a task and its audio are kept, in seconds", least=1)
    upload_max_mb: int = setting(50, "Largest upload, in MiB", least=1)
    upload_max_s: float = setting(600.0, "Longest upload, in seconds of audio", least=1)
    upload_timeout_s: float = setting(600.0, "Longest time in which an upload is received, in seconds", least=0.001)
    max_uploads: int = setting(16, "Most uploads received at once", least=1)
    upload_keep_s: float = setting(
        3600.0,
        "How long an upload is kept, in seconds; one that a task needs stays until that has ended",
        least=1,
    )
    encode_threads: int = setting(os.cpu_count() or 1, "Threads that encode audio", least=1)
    unsent_stream_mb: int = setting(
        512,
        "Most audio that one stream may hold unsent, in MiB; then its connection is cut",
        least=1,
    )
    unsent_total_mb: int = setting(
        2048,
        "Most unsent audio of all streams together, in MiB; then the connection that holds most is cut",
        least=1,
    )
    send_timeout_s: float = setting(
        300.0,
        "A reader that takes nothing for this many seconds is cut off",
        least=0.001,
    )
    resume_keep_s: float = setting(
        300.0,
        "How long a stream can be continued after its connection broke, in seconds; 0 keeps none",
        least=0,
    )
    resume_grace_s: float = setting(
        10.0,
        "How long a synthesis goes on without its client where the request said `X-Resumable: true`, in seconds",
        least=0,
    )
    resume_max_streams: int = setting(64, "Most streams kept for that", least=0)
    resume_total_mb: int = setting(256, "Most audio kept for that, in MiB", least=0)
    agent_port: int = setting(
        0,
        "Port on which a gateway learns how many requests it may send (HAProxy's `agent-check`); 0 opens none",
        least=0,
        most=65535,
    )
    fleet: tuple[str, ...] = setting(
        (),
        "Base URLs of all servers behind one gateway, separated by commas, for `/opus_queue_status?fleet=1`",
    )
    max_connections: int = setting(
        768,
        "Most open connections; never more than three quarters of the process's descriptors",
        least=1,
    )
    max_connections_per_address: int = setting(256, "Most open connections of one client address", least=1)
    header_timeout_s: float = setting(10.0, "Longest time for the head of a request, in seconds", least=0.001)
    body_timeout_s: float = setting(
        30.0,
        "Longest time without a byte of a request's body, in seconds",
        least=0.001,
    )
    body_min_rate: int = setting(
        1024,
        "Slowest body, in bytes a second on average, once it has taken `BODY_TIMEOUT_S`",
        least=0,
    )
    shutdown_timeout_s: int = setting(30, "Seconds that running streams get to end at shutdown", least=0)
    api_keys: tuple[str, ...] = setting(
        (),
        "Keys of which one is needed, separated by commas; empty lets everybody in",
    )
    openai_default_format: str = setting(
        "mp3",
        "Format of `/v1/audio/speech` where the request names none: `mp3`, `opus`, `aac`, `flac`, `wav` or `pcm`",
        choices=("mp3", "opus", "aac", "flac", "wav", "pcm"),
    )
    cors_origins: tuple[str, ...] = setting(("*",), "Origins whose pages may call the server, separated by commas")

    @property
    def log_path(self) -> Path | None:
        """Where the log is kept; None where it is not."""
        return None if self.log_file == "none" else self.data_dir / self.log_file

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Settings:
        """Read what is set; an empty variable counts as not set.

        Raises:
            InvalidSetting: a value of the wrong type or outside its range; the sentence names the variable.
        """
        options = {name: environment[name] for name in variables() if environment.get(name, "").strip()}
        return cls(**values_of(cls, environment), engine_options=options)
