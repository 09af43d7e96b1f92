"""The engine around IndexTTS 1.0 and 1.5."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from streaming_server.audio.decode import decode_native
from streaming_server.domain import Capability, Generation, Granularity, SpeechRequest
from streaming_server.engines.base import EngineInfo
from streaming_server.engines.indextts.calibration import calibrate
from streaming_server.engines.indextts.checkpoint import CONFIG, Checkpoint
from streaming_server.engines.indextts.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts.frontend import Frontend
from streaming_server.engines.indextts.runtime import LookAhead, Runtime
from streaming_server.engines.indextts.stream import CHUNKS, Audio, Segments, Synthesiser, window_sizes
from streaming_server.engines.indextts.voices import MAX_S, AnalysedVoice, VoiceCache
from streaming_server.engines.threads import Check, in_turns
from streaming_server.engines.torch.calibration import too_short
from streaming_server.engines.torch.faults import free_unused
from streaming_server.engines.torch.model_engine import MAX_ROWS, ModelEngine, StartTimes, keeps_deadlines, run_alone
from streaming_server.engines.torch.options import Device, Precision
from streaming_server.errors import EngineNotReady, EngineUnavailable

logger = logging.getLogger(__name__)

WARM_UP_TEXTS = ("你好。", "Hello.")
"""One text per language: the text normaliser of a language loads on first use."""
WHOLE_CODES = 320
"""Longest segment, in codes, that is vocoded whole in at most two recorded windows; longer ones take more of them."""


class IndexTTSEngine(ModelEngine):
    """An ``Engine`` for one checkpoint folder.

    Args:
        model_dir: The checkpoint folder.
        device: ``auto`` selects CUDA, else MPS, else the CPU.
        precision: None selects fp16 on CUDA and fp32 elsewhere.
        look_ahead: Codes required after a chunk of a token stream before it is vocoded; fewer reduce the latency, and
            ``exact`` gives the same audio as vocoding all codes at once.
        first_chunk: Codes of the first chunk of a token stream.
        voice_cache_size: Number of voice analyses to cache.

    Raises:
        EngineUnavailable: a file of the folder is missing or invalid, or the device is not available.
    """

    def __init__(
        self, *, model_dir: Path, device: Device = "auto", precision: Precision | None = None,
        look_ahead: LookAhead = "exact", first_chunk: int = CHUNKS[0], voice_cache_size: int = 64,
    ) -> None:  # fmt: skip
        super().__init__(device, precision)
        if look_ahead != "exact" and look_ahead < 1:
            raise EngineUnavailable(f"the look-ahead must be `exact` or at least 1 code, not {look_ahead}")
        self._look_ahead = look_ahead
        self._first_chunk = first_chunk
        self._voice_cache_size = voice_cache_size
        self._checkpoint = Checkpoint.open(model_dir)
        self._frontend = self._checkpoint.frontend()

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            name="indextts",
            model_version=self._checkpoint.version,
            sample_rate_hz=SAMPLE_RATE_HZ,
            model_type="IndexTTS",
            device=str(self._device),
            precision=self._precision,
            use_cuda_kernel=False,
            config_path=str(self._checkpoint.folder / CONFIG),
            model_dir=str(self._checkpoint.folder),
            max_mel_tokens=self._checkpoint.max_mel_tokens,
            max_concurrency=MAX_ROWS,
            capabilities=frozenset(
                {
                    Capability.TEXT_TO_SPEECH,
                    Capability.VOICE_CLONING,
                    Capability.MULTI_LANGUAGE,
                    Capability.GENERATION_PARAMETERS,
                    Capability.TOKEN_STREAMING,
                    Capability.SEED,
                }
            ),
        )

    async def calibrate(self, recording: Path, text: str, report: Callable[[str], None]) -> str:
        """Measure all look-aheads, as `engines.base.Calibrating` has it.

        Raises:
            EngineNotReady: ``warm`` has not completed.
            InvalidRequest: the text is too short.
            VoiceUnreadable: the recording cannot be decoded.
        """
        loaded = self._loaded
        if not isinstance(loaded, Loaded):
            raise EngineNotReady
        return await self._owner.call(loaded.calibrate, recording, text, report)

    def _load(self, times: StartTimes) -> Loaded:
        with times.phase("load"):
            runtime = self._checkpoint.load(self._device, self._dtype)
        voices = VoiceCache(runtime, self._voice_cache_size, partial(decode_native, limit_s=MAX_S), self._digests)
        loaded = Loaded(
            self._checkpoint.version, runtime, self._frontend, self._look_ahead, self._first_chunk, voices,
            self._owner.wake,
        )  # fmt: skip
        runtime.writer.open(self._rows)
        loaded.warm(times)
        return loaded


class Loaded:
    """The loaded model; used by the owner thread only."""

    def __init__(
        self, version: str, runtime: Runtime, frontend: Frontend, look_ahead: LookAhead, first_chunk: int,
        voices: VoiceCache, wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self._version = version
        self._runtime = runtime
        self._frontend = frontend
        self._look_ahead = look_ahead
        self._first_chunk = first_chunk
        self._synthesiser = Synthesiser(runtime, look_ahead, first_chunk, wake)
        self._voices = voices

    def synthesise(self, request: SpeechRequest) -> Audio:
        voice, segments = yield from in_turns(partial(self._prepared, request), "preparation")
        generation = request.generation
        if request.granularity is Granularity.SENTENCE:
            yield from self._synthesiser.synthesise_by_sentence(voice, segments, generation, request.sentence_batch)
        else:
            yield from self._synthesiser.synthesise_by_token(voice, segments, generation)

    def _prepared(self, request: SpeechRequest, check: Check) -> tuple[AnalysedVoice, Segments]:
        generation = request.generation
        longest = min(generation.max_text_tokens_per_sentence, self._runtime.gpt.shape.max_text)
        segments = self._frontend.segments(request.text, longest, check=check)
        if request.emotion is not None:
            logger.warning("emotion ignored: IndexTTS %s has no emotion control", self._version)
        if request.verbose:
            logger.info("%d segments of %s tokens, %s", len(segments), [len(ids) for ids in segments], generation)
        return self._voices.get(request.voice.path, check), segments

    def warm(self, times: StartTimes) -> None:
        """Record the CUDA graphs and synthesise short texts, so that the first request is as fast as later ones."""
        reach = self._runtime.vocoder.shape.reach
        windows = window_sizes(reach, self._runtime.look_ahead_codes(self._look_ahead), self._first_chunk)
        if self._runtime.device.type == "cuda":
            with times.phase("record"):
                self._runtime.record(windows, WHOLE_CODES, self._runtime.writer.rows)
        noise = torch.randn(SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0)) / 10
        mel = self._runtime.log_mel(noise)
        voice = AnalysedVoice(self._runtime.condition(mel), self._runtime.speaker(mel))
        generation = Generation(max_mel_tokens=min(windows), seed=0)
        segments = [ids for text in WARM_UP_TEXTS for ids in self._frontend.segments(text, 20)]
        with times.phase("synthesis"):
            run_alone(self._synthesiser.synthesise_by_token(voice, segments, generation), self.step)

    def calibrate(self, recording: Path, text: str, report: Callable[[str], None]) -> str:
        segments = self._frontend.segments(text, self._runtime.gpt.shape.max_text)
        if not segments:
            raise too_short()
        return calibrate(self._runtime, self._voices.get(recording), segments[0], report)

    def step(self) -> bool:
        return self._runtime.writer.step()

    def has_room(self, active: int) -> bool:
        code_s = self._runtime.samples_per_code / SAMPLE_RATE_HZ
        return keeps_deadlines(self._runtime.writer, self._synthesiser.thread, active + 1, code_s)

    def shrink(self) -> None:
        self._voices.shrink()

    def close(self) -> None:
        self._synthesiser.close()
        free_unused(self._runtime.device)
