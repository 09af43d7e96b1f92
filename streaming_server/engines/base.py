"""What the server asks of a speech engine, and the engines there are, by name.

An engine is imported only when it is chosen, so that nobody pays for a model that is not used.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from streaming_server.domain import AudioChunk, SpeechRequest
from streaming_server.errors import EngineUnavailable


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is really loaded, for ``GET /model_info``."""

    name: str
    model_version: str
    sample_rate_hz: int
    model_type: str = ""
    """Family of the model, as ``get_model_info`` names it; empty where it is the name."""
    device: str = "cpu"
    is_fp16: bool = False
    use_cuda_kernel: bool = False
    config_path: str = ""
    """Empty where the engine reads no configuration file."""
    model_dir: str = ""
    """Empty where the engine loads no model folder."""
    max_mel_tokens: int | None = None
    """The model's own limit of audio codes a sentence; None where it has none."""
    capabilities: Mapping[str, bool] = field(default_factory=dict)
    """What of a request is honoured: ``text_to_speech``, ``voice_cloning``, ``multi_language``,
    ``generation_parameters``, ``token_streaming``, ``seed``, ``speed``, ``emotion_control`` (any emotion at all),
    ``emotion_vector``, ``emotion_text``, ``emotion_reference``, ``emotion_random``, ``scene``, ``smart_voice``,
    ``dialogue`` (takes a script as a whole). What is missing or False is ignored, and the log says so for each such
    request; only the speed and the turns of a dialogue are then made up for elsewhere."""

    emotion_text_by: Literal["", "classifier", "words"] = ""
    """What reads the description of an emotion: a model, or a list of words. Empty where nothing does."""


@dataclass(frozen=True, slots=True)
class IndexTTS2Options:
    """How IndexTTS 2.0 and 2.5 are to run."""

    stream: Literal["chunk", "segment"] = "segment"
    """What a stream does whose request does not say it."""
    steps: int = 25
    """Of the flow matching."""
    look_ahead: int = 16
    """Frames that a chunk's solve sees beyond it."""
    reference_s: float = 5.0
    """Seconds of the voice that a chunk's solve sees."""
    cap_emotion: bool = True
    """Bias and bound the eight numbers of an emotion as the public web page does."""
    language: str | None = None
    """Of all texts, in 2.5; None tells it from each text."""
    w2vbert_dir: Path | None = None
    """None here and below: where the public program puts it, in ``hf_cache`` below the model's folder."""
    campplus_file: Path | None = None
    bigvgan_dir: Path | None = None
    semantic_codec_file: Path | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which engine, and how it is to run."""

    name: Literal["auto", "espeak", "indextts", "higgs"] = "auto"
    """``auto`` takes indextts where ``model_dir`` holds a model, higgs where ``model_path`` does, else espeak."""
    model_dir: Path = Path("checkpoints")
    model_path: str = "bosonai/higgs-audio-v2-generation-3B-base"
    """Of higgs: a folder, or a name on the Hugging Face hub, which ``auto`` leaves alone."""
    audio_tokenizer_path: str = "bosonai/higgs-audio-v2-tokenizer"
    """Of higgs, likewise."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    precision: Literal["fp16", "bf16", "fp32"] | None = None
    """None leaves it to the engine."""
    look_ahead: int | Literal["exact"] = "exact"
    """Codes that a token stream knows beyond what it vocodes."""
    voice_cache_size: int = 64
    """Voices whose analysis is kept."""
    indextts2: IndexTTS2Options = IndexTTS2Options()


class Engine(Protocol):
    """A source of speech. Called by one request at a time; the slot sees to that."""

    @property
    def info(self) -> EngineInfo:
        """What is loaded; known before ``warm`` has ended."""

    async def warm(self) -> None:
        """Load and run once, so that the first request is as fast as the next.

        Raises:
            EngineUnavailable: the engine cannot start; the sentence says what to do.
        """

    def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Yield float32 mono chunks at ``info.sample_rate_hz`` as they are made.

        ``aclose()`` stops the synthesis within one chunk and returns when the engine is idle again.

        Raises:
            VoiceUnreadable: the voice's recording cannot be decoded.
        """

    async def aclose(self) -> None:
        """Give back threads, files and device memory."""


@runtime_checkable
class Preparing(Protocol):
    """An engine with work to do before the slot is entered: what needs no device, such as hashing recordings."""

    async def prepare(self, request: SpeechRequest) -> None: ...


def create_engine(options: EngineOptions) -> Engine:
    """The engine that the options name; nothing else takes its place.

    Raises:
        EngineUnavailable: it cannot start, or cannot do what is asked of it; the sentence says what to do.
    """
    name = options.name
    if name == "auto":
        name = "higgs" if (Path(options.model_path) / "config.json").is_file() else "espeak"
        name = "indextts" if (options.model_dir / "config.yaml").is_file() else name
    if name == "espeak":
        from streaming_server.engines.espeak.engine import EspeakEngine

        if options.device not in {"auto", "cpu"} or options.precision is not None:
            raise EngineUnavailable(
                "the espeak engine knows no device but the CPU and no precision: leave --device, --fp16, --bf16 and "
                "--fp32 away, or take --engine indextts with a model"
            )
        return EspeakEngine()
    if name == "higgs":
        try:
            from streaming_server.engines.higgs.engine import HiggsEngine
        except ImportError as error:  # an older transformers has the package and not the model
            raise EngineUnavailable(
                f"the higgs engine needs {error.name}: pip install 'streaming-server[higgs]'"
            ) from error

        return HiggsEngine(
            model_path=options.model_path,
            audio_tokenizer_path=options.audio_tokenizer_path,
            device=options.device,
            precision=options.precision,
            look_ahead=options.look_ahead,
            voice_cache_size=options.voice_cache_size,
        )
    try:
        return create_indextts(options)
    except ModuleNotFoundError as error:
        raise EngineUnavailable(
            f"the indextts engine needs {error.name}: pip install 'streaming-server[indextts]', "
            "or 'streaming-server[indextts2]' for a model of version 2"
        ) from error


def create_indextts(options: EngineOptions) -> Engine:
    """The runtime that the model's ``config.yaml`` is for."""
    from streaming_server.engines.indextts.checkpoint import HOW_TO_GET_IT, read_config

    config = read_config(options.model_dir, HOW_TO_GET_IT)
    if str(config.get("version", "1.0")).startswith("2"):
        from streaming_server.engines.indextts2.engine import IndexTTS2Engine

        return IndexTTS2Engine(
            model_dir=options.model_dir,
            options=options.indextts2,
            device=options.device,
            precision=options.precision,
            voice_cache_size=options.voice_cache_size,
        )
    from streaming_server.engines.indextts.engine import IndexTTSEngine

    return IndexTTSEngine(
        model_dir=options.model_dir,
        device=options.device,
        precision=options.precision,
        look_ahead=options.look_ahead,
        voice_cache_size=options.voice_cache_size,
    )
