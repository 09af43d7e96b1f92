"""IndexTTS as an engine of the server: requests in, audio chunks out.

One owner thread touches the model. This module does not know HTTP, the slot, or how the model computes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import Literal

import torch

from streaming_server.audio.decode import decode_native
from streaming_server.domain import AudioChunk, Generation, Granularity, SpeechRequest
from streaming_server.engines.base import EngineInfo
from streaming_server.engines.indextts.checkpoint import CONFIG, Checkpoint
from streaming_server.engines.indextts.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts.frontend import Frontend
from streaming_server.engines.indextts.runtime import LookAhead, Runtime
from streaming_server.engines.indextts.stream import Audio, Narrator, window_sizes
from streaming_server.engines.indextts.voices import KnownVoice, Voices
from streaming_server.engines.threads import OwnerThread
from streaming_server.errors import EngineNotReady, EngineUnavailable

logger = logging.getLogger(__name__)

Device = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["fp16", "bf16", "fp32"]

DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

WARM_UP_TEXTS = ("你好。", "Hello.")
"""One for each of the normalisers, which load when they are first used."""


class IndexTTSEngine:
    """An ``Engine`` around one checkpoint folder.

    Args:
        model_dir: The checkpoint folder.
        device: ``auto`` takes CUDA, else MPS, else the CPU.
        precision: None takes fp16 on CUDA and fp32 elsewhere.
        look_ahead: Codes known beyond a chunk of a token stream before it is vocoded; fewer speak earlier, and
            ``exact`` makes the stream equal to vocoding the whole.
        voice_cache_size: Analysed voices that are kept.

    Raises:
        EngineUnavailable: the folder lacks a file or holds a broken one, or the device cannot be used.
    """

    def __init__(
        self, *, model_dir: Path, device: Device = "auto", precision: Precision | None = None,
        look_ahead: LookAhead = "exact", voice_cache_size: int = 64,
    ) -> None:  # fmt: skip
        self._device = choose_device(device)
        precision = precision or ("fp16" if self._device.type == "cuda" else "fp32")
        if precision == "fp16" and self._device.type == "cpu":
            raise EngineUnavailable("fp16 needs a GPU; take bf16 or fp32 on the CPU")
        if look_ahead != "exact" and look_ahead < 1:
            raise EngineUnavailable(f"the look-ahead must be `exact` or at least 1 code, not {look_ahead}")
        self._dtype = DTYPES[precision]
        self._look_ahead = look_ahead
        self._voice_cache_size = voice_cache_size
        self._checkpoint = Checkpoint.open(model_dir)
        self._frontend = self._checkpoint.frontend()
        self._owner = OwnerThread("indextts")
        self._loaded: Loaded | None = None

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            name="indextts",
            model_version=self._checkpoint.version,
            sample_rate_hz=SAMPLE_RATE_HZ,
            device=str(self._device),
            is_fp16=self._dtype == torch.float16,
            use_cuda_kernel=False,
            config_path=str(self._checkpoint.folder / CONFIG),
            model_dir=str(self._checkpoint.folder),
            max_mel_tokens=self._checkpoint.max_mel_tokens,
            capabilities={
                "text_to_speech": True,
                "voice_cloning": True,
                "multi_language": True,
                "generation_parameters": True,
                "token_streaming": True,
                "seed": True,
                "speed": False,
                "emotion_control": False,
                "emotion_vector": False,
                "emotion_text": False,
                "emotion_reference": False,
                "emotion_random": False,
            },
        )

    async def warm(self) -> None:
        if self._loaded is None:
            self._loaded = await self._owner.call(self._load)

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Chunks of the request's audio. Closing it stops the decoding within one code.

        Raises:
            EngineNotReady: ``warm`` has not ended.
            VoiceFileMissing: the voice's recording is gone.
            VoiceUnreadable: the voice's recording cannot be decoded.
        """
        loaded = self._loaded
        if loaded is None:
            raise EngineNotReady
        cancelled = threading.Event()

        def produce(emit: Callable[[AudioChunk], bool]) -> None:
            with closing(loaded.speak(request)) as audio:
                for samples in audio:
                    if cancelled.is_set():
                        return
                    if samples is not None and samples.size and not emit(AudioChunk(samples)):
                        return

        async with aclosing(self._owner.iterate(produce)) as chunks:
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                cancelled.set()  # seen at the next code, long before the next chunk could be refused

    async def aclose(self) -> None:
        if self._loaded is not None:
            await self._owner.call(self._loaded.close)
            self._loaded = None
        await self._owner.aclose()

    def _load(self) -> Loaded:
        try:
            runtime = self._checkpoint.load(self._device, self._dtype)
            loaded = Loaded(self._checkpoint.version, runtime, self._frontend, self._look_ahead, self._voice_cache_size)
            loaded.warm()
        except torch.OutOfMemoryError as error:
            raise EngineUnavailable(f"the device {self._device} has too little free memory for the model") from error
        return loaded


class Loaded:
    """What is there once the model is loaded; touched by the owner thread only."""

    def __init__(
        self, version: str, runtime: Runtime, frontend: Frontend, look_ahead: LookAhead, voice_cache_size: int
    ) -> None:
        self._version = version
        self._runtime = runtime
        self._frontend = frontend
        self._look_ahead = look_ahead
        self._narrator = Narrator(runtime, look_ahead)
        self._voices = Voices(runtime, voice_cache_size, decode_native)

    def speak(self, request: SpeechRequest) -> Audio:
        generation = request.generation
        longest = min(generation.max_text_tokens_per_sentence, self._runtime.gpt.shape.max_text)
        segments = self._frontend.segments(request.text, longest)
        if request.emotion is not None:
            logger.warning(
                "IndexTTS %s has no emotion but the voice's own: the one asked for is ignored", self._version
            )
        if request.verbose:
            logger.info("%d segments of %s tokens, %s", len(segments), [len(ids) for ids in segments], generation)
        voice = self._voices.get(request.voice.path)
        if request.granularity is Granularity.TOKEN:
            return self._narrator.speak_by_token(voice, segments, generation)
        return self._narrator.speak_by_sentence(voice, segments, generation, request.sentence_batch)

    def warm(self) -> None:
        """Record what can be recorded, then speak a little: the first request is as fast as the next."""
        reach = self._runtime.vocoder.shape.reach
        look_ahead = self._runtime.look_ahead_codes(self._look_ahead)
        if self._runtime.device.type == "cuda":
            self._runtime.record(window_sizes(reach, look_ahead))
        noise = torch.randn(SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0)) / 10
        mel = self._runtime.log_mel(noise)
        voice = KnownVoice(self._runtime.condition(mel), self._runtime.speaker(mel))
        generation = Generation(max_mel_tokens=min(window_sizes(reach, look_ahead)), seed=0)
        segments = [ids for text in WARM_UP_TEXTS for ids in self._frontend.segments(text, 20)]
        for _ in self._narrator.speak_by_token(voice, segments, generation):
            pass

    def close(self) -> None:
        self._narrator.close()
        if self._runtime.device.type == "cuda":
            torch.cuda.empty_cache()


def choose_device(wanted: Device) -> torch.device:
    """The device to compute on.

    Raises:
        EngineUnavailable: the wanted device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind, there in available.items() if there) if wanted == "auto" else wanted
    if not available[kind]:
        raise EngineUnavailable(f"the device {kind} was asked for, but torch finds none; take --device auto")
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
