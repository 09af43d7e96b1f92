"""The engine around HiggsAudio v2."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from streaming_server.audio.decode import decode_mono
from streaming_server.domain import AudioChunk, Capability, Generation, SpeechRequest, Turn, Voice
from streaming_server.engines.base import EngineInfo
from streaming_server.engines.content_cache import ContentCache, FileDigests
from streaming_server.engines.higgs.checkpoint import SAMPLE_RATE_HZ, Checkpoint
from streaming_server.engines.higgs.codes import CONTEXT_FRAMES, ChunkDecoder, Undelayed
from streaming_server.engines.higgs.prompt import AnalysedVoice, PromptWriter, Said, text_of
from streaming_server.engines.higgs.sampling import draw
from streaming_server.engines.threads import Emit, OwnerThread
from streaming_server.engines.torch.faults import device_errors
from streaming_server.engines.torch.model_engine import digest_recordings, unavailable, unused_gpu
from streaming_server.errors import (
    EngineNotReady,
    EngineUnavailable,
    InsufficientMemory,
    VoiceFileMissing,
    VoiceUnreadable,
)

log = logging.getLogger(__name__)

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_MIN_S, _MAX_S = 0.2, 60.0
"""Minimum and maximum length of a recording: the codec has a minimum, and memory grows with the length."""


class HiggsEngine:
    """An ``Engine`` for one checkpoint.

    A voice with a transcript, its own or a text file with the same name as the recording, is an earlier turn of the
    conversation.
    A voice without one is part of the scene.
    """

    def __init__(
        self, *, model_path: str, audio_tokenizer_path: str, device: str = "auto",
        precision: Literal["fp16", "bf16", "fp32"] | None = None, look_ahead: int | Literal["exact"] = "exact",
        voice_cache_size: int = 64,
    ) -> None:  # fmt: skip
        """
        Args:
            model_path: a folder, or a repository on the Hugging Face hub.
            audio_tokenizer_path: the codec: a folder or a repository.
            device: ``auto`` selects an accelerator if there is one.
            precision: None selects bf16 on CUDA and fp32 elsewhere.
            look_ahead: frames required after a chunk; fewer than 10 reduce the latency, but the audio is not exact.
            voice_cache_size: number of recordings whose codes are cached.

        Raises:
            EngineUnavailable: the checkpoint is missing or has the wrong type, or the device is not available.
        """
        self._device = _usable(device)
        precision = precision or ("bf16" if self._device.type == "cuda" else "fp32")
        if precision == "fp16" and self._device.type == "cpu":
            raise EngineUnavailable("fp16 requires a GPU; use bf16 or fp32 on the CPU")
        self._precision = precision
        self._dtype = _DTYPES[precision]
        self._look_ahead = CONTEXT_FRAMES if look_ahead == "exact" else look_ahead
        self._voice_cache_size = voice_cache_size
        self._checkpoint = Checkpoint.open(model_path, audio_tokenizer_path)
        self._owner = OwnerThread("higgs")
        self._digests = FileDigests()
        self._loaded: Loaded | None = None

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            name="higgs",
            model_version="2",
            sample_rate_hz=SAMPLE_RATE_HZ,
            device=str(self._device),
            precision=self._precision,
            model_dir=self._checkpoint.model,
            capabilities=frozenset(
                {
                    Capability.TEXT_TO_SPEECH,
                    Capability.VOICE_CLONING,
                    Capability.MULTI_LANGUAGE,
                    Capability.GENERATION_PARAMETERS,
                    Capability.TOKEN_STREAMING,
                    Capability.SEED,
                    Capability.DIALOGUE,
                    Capability.SCENE,
                    Capability.SMART_VOICE,
                }
            ),
        )

    async def warm(self) -> None:
        if self._loaded is None:
            self._loaded = await self._owner.call(self._load)

    async def prepare(self, request: SpeechRequest) -> None:
        """Hash the request's recordings before the request takes the slot."""
        await asyncio.to_thread(digest_recordings, self._digests, request)

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Yield the request's audio in chunks. Closing the iterator stops the generation within one frame.

        Raises:
            EngineNotReady: ``warm`` has not completed.
            InsufficientMemory: the device has too little memory for the request.
            DeviceFailed: the device has failed.
            VoiceFileMissing: the recording of a voice does not exist.
            VoiceUnreadable: a voice's recording cannot be decoded.
        """
        loaded = self._loaded
        if loaded is None:
            raise EngineNotReady

        def produce(emit: Emit[AudioChunk]) -> None:
            with device_errors(self._device, loaded.shrink):
                loaded.synthesise(request, emit)

        async with aclosing(self._owner.iterate(produce)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def aclose(self) -> None:
        self._loaded = None
        await self._owner.aclose()

    def _load(self) -> Loaded:
        try:
            with device_errors(self._device, lambda: None):
                model, tokenizer, codec = self._checkpoint.load(self._device, self._dtype)
                loaded = Loaded(
                    model, tokenizer, codec, self._device, self._look_ahead, self._voice_cache_size, self._digests
                )
                warm_up = SpeechRequest(
                    "Hello.", Voice("", Path()), Generation(max_mel_tokens=24, seed=0), own_voices=True
                )
                loaded.synthesise(warm_up, Discard())
        except InsufficientMemory as error:
            raise EngineUnavailable(f"the device {self._device} has too little free memory for the model") from error
        return loaded


class Discard:
    """Discards the audio of the warm-up."""

    def __call__(self, chunk: AudioChunk, /) -> bool:
        return True

    def check(self) -> None:
        pass


class Loaded:
    """The loaded model; used by the owner thread only."""

    def __init__(
        self, model: Any, tokenizer: Any, codec: Any, device: torch.device, look_ahead: int, voice_cache_size: int,
        digests: FileDigests,
    ) -> None:  # fmt: skip
        self._model = model
        self._codec = codec
        self._device = device
        self._look_ahead = look_ahead
        self._writer = PromptWriter(tokenizer, model.config, device)
        self._voice_codes = ContentCache[torch.Tensor](voice_cache_size, digests)

    def synthesise(self, request: SpeechRequest, emit: Emit[AudioChunk]) -> None:
        """Synthesise all pieces of a request, each with the previous ones as context.

        Raises:
            VoiceFileMissing, VoiceUnreadable: a recording is missing or cannot be decoded.
        """
        if request.emotion is not None:
            log.warning("emotion ignored: HiggsAudio takes the emotion from the scene and the voice")
        script = request.script or ((Turn(request.text, request.voice),),)
        cast = {turn.speaker: turn.voice for piece in script for turn in piece}
        speakers = sorted(cast, key=lambda speaker: speaker or 0)
        voices = {} if request.own_voices else {speaker: self._voice(voice) for speaker, voice in cast.items()}
        before: deque[Said] = deque(maxlen=request.generation.context_pieces)
        for number, piece in enumerate(script):
            inputs = self._writer.write(piece, speakers, voices, request.scene, list(before))
            if request.verbose:
                log.info("piece %d: %d prompt tokens, %s", number, inputs["input_ids"].shape[1], request.generation)
            codes = self._make(inputs, _for_piece(request.generation, number), emit)
            if codes is not None:
                before.append(Said(text_of(piece), codes))

    def _make(
        self, inputs: dict[str, torch.Tensor], generation: Generation, emit: Emit[AudioChunk]
    ) -> torch.Tensor | None:
        """Synthesise one piece; return its codes, ``(C, F)``, or None if there are none."""
        config = self._model.config
        undelayed = Undelayed(config.num_codebooks, config.audio_stream_bos_id, config.audio_stream_eos_id)
        decoder = ChunkDecoder(self._codec, self._device, self._look_ahead)

        def receive(frame: torch.Tensor) -> None:
            emit.check()
            aligned = undelayed.push(frame)
            samples = decoder.push(aligned) if aligned is not None else None
            if samples is not None:
                emit(AudioChunk(samples))

        draw(self._model, inputs, generation, receive)
        if not undelayed.ended:
            log.warning("audio truncated: a piece reached the limit of %d codes", generation.max_mel_tokens)
        rest = decoder.finish()
        if rest.size:
            emit(AudioChunk(rest))
        emit.check()
        return decoder.codes if decoder.count else None

    def shrink(self) -> None:
        """Release cached memory."""
        self._voice_codes.shrink()

    def _voice(self, voice: Voice) -> AnalysedVoice:
        beside, text = voice.path.with_suffix(".txt"), voice.transcript
        try:
            if not text and beside.is_file():
                text = beside.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            raise VoiceFileMissing(voice.path.name) from error
        return AnalysedVoice(self._voice_codes.get(voice.path, self._encode), text)

    @torch.inference_mode()
    def _encode(self, path: Path) -> torch.Tensor:
        samples = decode_mono(path, SAMPLE_RATE_HZ, _MAX_S)
        if samples.size < _MIN_S * SAMPLE_RATE_HZ:
            raise VoiceUnreadable(path.name, f"is shorter than {_MIN_S} s")
        wave = torch.from_numpy(samples)[None, None].to(self._device)  # (1, 1, n)
        codes: torch.Tensor = self._codec.encode(wave).audio_codes[0]
        return codes.cpu()


def _for_piece(generation: Generation, number: int) -> Generation:
    """Give each piece of a request a different seed."""
    if generation.seed is None or number == 0:
        return generation
    return replace(generation, seed=(generation.seed + number) % 2**63)


def _usable(name: str) -> torch.device:
    """Return the device with this name.

    Raises:
        EngineUnavailable: the device is not available.
    """
    if name == "auto":
        if not torch.accelerator.is_available() and (problem := unused_gpu()):
            log.warning("GPU not used: %s", problem)
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise unavailable(name) from error
