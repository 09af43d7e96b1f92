"""All settings: their names, defaults, ranges and what they mean in two languages.

Not what they do; and only ``from_env`` knows where they come from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streaming_server.environment import setting, values_of


@dataclass(frozen=True, slots=True)
class Settings:
    """All there is to set; see the README for what each is for."""

    host: str = setting("0.0.0.0", "Address to listen on", "监听地址")
    port: int = setting(
        8000, "Port to listen on; 0 takes a free one", "监听端口；0 表示任意空闲端口", least=0, most=65535
    )
    engine: str = setting(
        "auto",
        "`auto` (a model where there is one, else espeak), `espeak`, `indextts` or `higgs`",
        "`auto`（有模型则用模型，否则用 espeak）、`espeak`、`indextts` 或 `higgs`",
        choices=("auto", "espeak", "indextts", "higgs"),
    )
    model_dir: Path = setting(Path("checkpoints"), "Folder of the model", "模型目录")
    model_path: str = setting(
        "bosonai/higgs-audio-v2-generation-3B-base",
        "HiggsAudio's model: a folder, or a name on the Hugging Face hub",
        "HiggsAudio 模型：目录，或 Hugging Face 上的名称",
    )
    audio_tokenizer_path: str = setting(
        "bosonai/higgs-audio-v2-tokenizer", "HiggsAudio's codec, likewise", "HiggsAudio 的音频编解码器，同上"
    )
    device: str = setting(
        "auto",
        "Where the model runs: `auto`, `cuda`, `mps` or `cpu`",
        "模型运行的设备：`auto`、`cuda`、`mps` 或 `cpu`",
        choices=("auto", "cuda", "mps", "cpu"),
    )
    precision: str = setting(
        "auto",
        "Of the model's arithmetic: `auto` (on CUDA fp16, bf16 for HiggsAudio, else fp32), `fp16`, `bf16` or `fp32`",
        "模型的计算精度：`auto`（CUDA 上为 fp16，HiggsAudio 为 bf16，否则 fp32）、`fp16`、`bf16` 或 `fp32`",
        choices=("auto", "fp16", "bf16", "fp32"),
    )
    look_ahead: str = setting(
        "exact",
        "Codes that a token stream of a model waits for beyond what it makes sound of: `exact` (as good as the whole) "
        "or a number; 4 speaks earliest",
        "模型逐词流式输出时向前多等的编码数：`exact`（与整句合成相同）或一个数字，4 出声最早",
        least=1,
        most=31,
        choices=("exact",),
    )
    indextts2_stream: str = setting(
        "segment",
        "What a stream of IndexTTS 2 does whose request does not say it: `segment` (each solved once: exact) or "
        "`chunk` (sound while a segment is still being decoded)",
        "请求未指定时 IndexTTS 2 的流式方式：`segment`（整段一次求解，精确）或 `chunk`（边解码边出声）",
        choices=("segment", "chunk"),
    )
    indextts2_steps: int = setting(
        25,
        "Steps of IndexTTS 2's flow matching: 25 as published, 12 or 8 for less work",
        "IndexTTS 2 流匹配的步数：25 为官方值，12 或 8 更快",
        least=1,
        most=100,
    )
    indextts2_look_ahead: int = setting(
        16,
        "Mel frames (of 11.6 ms) that `chunk` knows beyond its sound; with more it is nearer to `segment`, and later",
        "`chunk` 方式向前多看的梅尔帧数（每帧 11.6 毫秒）；越多越接近 `segment`，出声越晚",
        least=0,
        most=172,
    )
    indextts2_reference_s: float = setting(
        5.0,
        "Seconds of the voice's recording that each solve of `chunk` sees again",
        "`chunk` 方式每次求解所用参考音频的秒数",
        least=0.5,
        most=15,
    )
    indextts2_emotion_cap: str = setting(
        "on",
        "`on`: bias the eight numbers of an emotion and bound their sum to 0.8, as the public web page does; `off`: "
        "take them as they are",
        "`on`：像官方网页那样对八维情感向量加偏置并把总和限制在 0.8；`off`：原样使用",
        choices=("on", "off"),
    )
    tts_language: str = setting(
        "auto",
        "Language of all texts, IndexTTS 2.5 only: `auto` (told by the script) or a code, as `en`, `de`, `yue`",
        "所有文本的语言（仅 IndexTTS 2.5）：`auto`（按文字判断）或语言代码，如 `en`、`de`、`yue`",
    )
    w2vbert_dir: str = setting(
        "",
        "Folder of w2v-BERT 2.0 for IndexTTS 2; empty: `hf_cache/w2v-bert-2.0` below the model",
        "IndexTTS 2 所用 w2v-BERT 2.0 的目录；为空时取模型目录下的 `hf_cache/w2v-bert-2.0`",
    )
    campplus_file: str = setting(
        "",
        "File of CAM++; empty: `hf_cache/campplus_cn_common.bin` below the model",
        "CAM++ 文件；为空时取模型目录下的 `hf_cache/campplus_cn_common.bin`",
    )
    bigvgan_dir: str = setting(
        "",
        "Folder of BigVGAN v2; empty: `hf_cache/bigvgan` below the model",
        "BigVGAN v2 的目录；为空时取模型目录下的 `hf_cache/bigvgan`",
    )
    semantic_codec_file: str = setting(
        "",
        "File of the semantic codec; empty: `hf_cache/semantic_codec_model.safetensors` (2.0) or `codec.pth` (2.5) "
        "below the model",
        "语义编解码器文件；为空时取模型目录下的 `hf_cache/semantic_codec_model.safetensors`（2.0）"
        "或 `codec.pth`（2.5）",
    )
    voice_cache: int = setting(64, "Voices whose analysis is kept in memory", "缓存在内存中的音色分析数量", least=1)
    reference_audio_dir: Path = setting(
        Path("reference_audios"),
        "Folder of the reference recordings",
        "参考音频目录",
    )
    data_dir: Path = setting(
        Path("data"),
        "Folder of all that the server writes: uploads, tasks, audio",
        "服务器写入的目录：上传、任务、音频",
    )
    database_url: str = setting(
        "",
        "Where tasks and uploads are recorded: `postgresql://user@host/name`; empty for SQLite in the data directory",
        "任务和上传记录的数据库：`postgresql://user@host/name`；为空则使用数据目录中的 SQLite",
    )
    files_url: str = setting(
        "",
        "Where uploads, audio and workflow files lie: `s3://bucket/prefix` for machines that share no folder; empty "
        "for the data directory",
        "上传、音频和工作流文件的存放位置：各机器没有共享目录时用 `s3://bucket/prefix`；为空则使用数据目录",
    )
    workflow_root: str = setting(
        "",
        "Folder below which workflows read and write; empty for `workflows` in the data directory",
        "工作流读写文件的根目录；为空则使用数据目录中的 `workflows`",
    )
    workflow_wait_s: float = setting(
        600.0, "Longest wait for a workflow's end, in seconds", "等待工作流结束的最长时间（秒）", least=0.001
    )
    celery_broker_url: str = setting(
        "",
        "Redis or RabbitMQ by which tasks reach workers: `redis://host/0`, `amqp://host`; empty: the server does them",
        "把任务交给 worker 的 Redis 或 RabbitMQ：`redis://host/0`、`amqp://host`；为空则在服务器内运行",
    )
    voice_prompts_dir: Path = setting(
        Path("examples/voice_prompts"),
        "Folder of further voices for the HiggsAudio dialect, listed before the reference recordings",
        "HiggsAudio 接口的附加音色目录，排在参考音频之前",
    )
    scene_prompts_dir: Path = setting(
        Path("examples/scene_prompts"), "Folder of the scenes, one text file each", "场景目录，每个场景一个文本文件"
    )
    max_new_tokens: int = setting(
        2048,
        "Most audio codes of one piece of text where a HiggsAudio request names no number",
        "HiggsAudio 请求未指定时，每段文本的最大音频编码数",
        least=1,
        most=4096,
    )
    dialogue: bool = setting(
        False,
        "`true`: `[SPEAKER0]`, `[SPEAKER1]` … in a text of the native and OpenAI dialects are speakers too",
        "`true`：原生与 OpenAI 接口的文本中 `[SPEAKER0]`、`[SPEAKER1]` … 也表示说话人",
    )
    log_file: str = setting(
        "api_server.log",
        "File in `DATA_DIR` that the log is kept in, as well as on the console; `none` keeps none",
        "`DATA_DIR` 中的日志文件名（同时输出到控制台）；`none` 表示不保存",
    )
    max_text_characters: int = setting(20000, "Longest text of one request", "单次请求的最大文本长度", least=1)
    max_queue: int = setting(32, "Most requests that may wait for the slot", "队列中最多等待的请求数", least=0)
    queue_timeout_s: float = setting(
        120.0, "Longest wait for the slot, in seconds", "排队等待的最长时间（秒）", least=0.001
    )
    live_first: bool = setting(
        True,
        "A live request that waits for the slot goes before a task that waits; `false`: by arrival",
        "等待时实时请求先于任务；`false` 表示按到达顺序",
    )
    max_pending_tasks: int = setting(1000, "Most tasks that may be pending", "最多等待的任务数", least=1)
    task_lease_s: float = setting(
        6.0,
        "A task whose process is not heard of for this many seconds is taken over by another",
        "处理任务的进程失联该秒数后由其他进程接管",
        least=1,
    )
    max_task_attempts: int = setting(
        5,
        "Attempts of a task whose engine fails or whose process dies; then it fails",
        "引擎出错或进程崩溃时任务的最多尝试次数，之后任务失败",
        least=1,
    )
    storage_wait_s: float = setting(
        120.0,
        "How long a workflow waits for storage that is full or away before it fails, in seconds; tasks wait on",
        "存储已满或不可用时工作流的最长等待时间（秒），之后失败；普通任务会继续等待",
        least=0.001,
    )
    audio_keep_s: float = setting(
        86400.0, "How long a task and its audio are kept, in seconds", "任务及其音频的保留时间（秒）", least=1
    )
    upload_max_mb: int = setting(50, "Largest upload, in MiB", "上传文件的最大大小（MiB）", least=1)
    upload_max_s: float = setting(600.0, "Longest upload, in seconds of audio", "上传音频的最长时长（秒）", least=1)
    upload_keep_s: float = setting(
        3600.0,
        "How long an upload is kept, in seconds; one that a task needs stays until that has ended",
        "上传文件的保留时间（秒）；任务仍需要的文件保留到任务结束",
        least=1,
    )
    encode_threads: int = setting(os.cpu_count() or 1, "Threads that encode audio", "音频编码线程数", least=1)
    unsent_stream_mb: int = setting(
        512,
        "Most audio that one stream may hold unsent, in MiB; then its connection is cut",
        "单个流未发送音频的上限（MiB），超过则断开该连接",
        least=1,
    )
    unsent_total_mb: int = setting(
        2048,
        "Most unsent audio of all streams together, in MiB; then the connection that holds most is cut",
        "所有流未发送音频的总上限（MiB），超过则断开占用最多的连接",
        least=1,
    )
    send_timeout_s: float = setting(
        300.0,
        "A reader that takes nothing for this many seconds is cut off",
        "客户端持续不读取数据达到该秒数后断开",
        least=0.001,
    )
    resume_keep_s: float = setting(
        300.0,
        "How long a stream can be continued after its connection broke, in seconds; 0 keeps none",
        "连接中断后流可以续传的时间（秒），0 表示不保留",
        least=0,
    )
    resume_grace_s: float = setting(
        10.0,
        "How long a synthesis goes on without its client where the request said `X-Resumable: true`, in seconds",
        "请求带有 `X-Resumable: true` 时，客户端断开后继续合成的时间（秒）",
        least=0,
    )
    resume_max_streams: int = setting(64, "Most streams kept for that", "为续传保留的流的最大数量", least=0)
    resume_total_mb: int = setting(256, "Most audio kept for that, in MiB", "为续传保留的音频总上限（MiB）", least=0)
    agent_port: int = setting(
        0,
        "Port on which a gateway learns how many requests it may send (HAProxy's `agent-check`); 0 opens none",
        "网关查询可同时发送请求数的端口（HAProxy 的 `agent-check`）；0 表示不打开",
        least=0,
        most=65535,
    )
    fleet: tuple[str, ...] = setting(
        (),
        "Base URLs of all servers behind one gateway, separated by commas, for `/opus_queue_status?fleet=1`",
        "同一网关后所有服务器的地址，以逗号分隔，用于 `/opus_queue_status?fleet=1`",
    )
    shutdown_timeout_s: int = setting(
        30, "Seconds that running streams get to end at shutdown", "关闭服务时留给正在进行的流的秒数", least=0
    )
    api_keys: tuple[str, ...] = setting(
        (),
        "Keys of which one is needed, separated by commas; empty lets everybody in",
        "访问所需的密钥，以逗号分隔；为空则不需要",
    )
    openai_default_format: str = setting(
        "mp3",
        "Format of `/v1/audio/speech` where the request names none: `mp3`, `opus`, `aac`, `flac`, `wav` or `pcm`",
        "`/v1/audio/speech` 的默认格式：`mp3`、`opus`、`aac`、`flac`、`wav` 或 `pcm`",
        choices=("mp3", "opus", "aac", "flac", "wav", "pcm"),
    )
    cors_origins: tuple[str, ...] = setting(
        ("*",), "Origins whose pages may call the server, separated by commas", "允许跨域访问的来源，以逗号分隔"
    )

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
        return cls(**values_of(cls, environment))
