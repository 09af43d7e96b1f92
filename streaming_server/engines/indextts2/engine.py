"""The engine around IndexTTS 2.0 and 2.5."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from streaming_server.audio.decode import decode_native
from streaming_server.domain import Capability, Emotion, FloatSamples, Generation, Granularity, SpeechRequest
from streaming_server.engines.base import EngineInfo
from streaming_server.engines.content_cache import FileDigests
from streaming_server.engines.indextts.checkpoint import CONFIG
from streaming_server.engines.indextts.stream import Audio
from streaming_server.engines.indextts2.calibration import calibrate
from streaming_server.engines.indextts2.chunks import Pace, chunk_pace
from streaming_server.engines.indextts2.description import Describer, describer
from streaming_server.engines.indextts2.emotion import capped, weakened
from streaming_server.engines.indextts2.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts2.folder import Checkpoint
from streaming_server.engines.indextts2.languages import ROWS
from streaming_server.engines.indextts2.options import IndexTTS2Options
from streaming_server.engines.indextts2.reading import Reader, Segment
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.indextts2.stream import Delivery, Synthesiser
from streaming_server.engines.indextts2.synthesis import record
from streaming_server.engines.indextts2.voices import MAX_S, STREAM_REFERENCE_S, AnalysedVoice, EmotionCache, VoiceCache
from streaming_server.engines.threads import Check, in_turns
from streaming_server.engines.torch.calibration import too_short
from streaming_server.engines.torch.faults import free_unused
from streaming_server.engines.torch.model_engine import MAX_ROWS, ModelEngine, StartTimes, keeps_deadlines, run_alone
from streaming_server.errors import EngineNotReady, EngineUnavailable

logger = logging.getLogger(__name__)

WARM_UP_TEXTS = ("你好。", "Hello.")
"""One text per language: the text normaliser of a language loads on first use."""
STATISTICS_TEXT = "今天天气很好，我们去公园走走。"
"""Decoded once per voice for the regulator statistics, which stabilise the first chunks of a stream."""
SHORT_OPENING = 24
"""Maximum number of tokens of the first segment, if it can be split at punctuation; reduces the latency."""
CODES_PER_TOKEN = {False: 12, True: 6}
"""Codes per token in slow speech, by whether the model is 2.5; bounds the length of segments by a request's codes."""
SHORTEST_LIMIT = 20
"""Segments may always have this many tokens, regardless of ``CODES_PER_TOKEN``."""
RECORDED_CODES = 600
"""Segments of up to this many codes are solved in recorded shapes."""
RECORDED_SLOWDOWN = 2.0
"""Factor on the natural duration up to which this holds for 2.5. Its largest, 4, would take twice the memory for speech
that is rarely asked for; such a solve runs unrecorded."""

CAPABILITIES = frozenset(Capability) - {
    Capability.SPEED,
    Capability.DIALOGUE,
    Capability.SCENE,
    Capability.SMART_VOICE,
}
"""Capabilities of both versions; 2.5 also has the speed."""


class IndexTTS2Engine(ModelEngine):
    """An ``Engine`` for one model folder of 2.0 or 2.5.

    Args:
        options: On CUDA the precision ``auto`` is fp16; the flow uses bf16 if the precision is fp16 or bf16.

    Raises:
        EngineUnavailable: a file is missing or invalid, the device is not available, or an option is out of range.
    """

    def __init__(self, options: IndexTTS2Options) -> None:
        super().__init__(options.device, options.chosen_precision)
        language = None if options.language == "auto" else options.language
        if language not in {None, *ROWS}:
            raise EngineUnavailable(f"TTS_LANGUAGE={options.language}: one of auto, {', '.join(ROWS)} is needed")
        self._options = options
        self._checkpoint = Checkpoint.open(options.model_dir, options.external_models_dir)
        self._reader = self._checkpoint.reader(language)

    @property
    def info(self) -> EngineInfo:
        checkpoint = self._checkpoint
        return EngineInfo(
            name="indextts",
            model_version=checkpoint.model_version,
            sample_rate_hz=SAMPLE_RATE_HZ,
            model_type="IndexTTS2",
            device=str(self._device),
            precision=self._precision,
            use_cuda_kernel=False,
            config_path=str(checkpoint.folder / CONFIG),
            model_dir=str(checkpoint.folder),
            max_mel_tokens=checkpoint.max_mel_tokens,
            max_concurrency=MAX_ROWS,
            capabilities=CAPABILITIES | ({Capability.SPEED} if checkpoint.version == "2.5" else set()),
            emotion_text_by="words" if checkpoint.classifier is None else "classifier",
        )

    async def calibrate(self, recording: Path, text: str, report: Callable[[str], None]) -> str:
        """Measure all streaming modes, as `engines.base.Calibrating` has it.

        Raises:
            EngineNotReady: ``warm`` has not completed.
            InvalidRequest: the text is too short.
            VoiceUnreadable: the recording cannot be decoded.
        """
        loaded = self._loaded
        if not isinstance(loaded, Loaded):
            raise EngineNotReady
        return await self._owner.call(lambda: loaded.calibrate(recording, text, report))

    def _load(self, times: StartTimes) -> Loaded:
        with times.phase("load"):
            runtime = self._checkpoint.load(self._device, self._dtype)
            description = describer(self._checkpoint.classifier, self._device)
        loaded = Loaded(runtime, self._reader, description, self._options, self._digests, self._owner.wake)
        runtime.writer.open(self._rows)
        loaded.warm(times)
        return loaded


class Loaded:
    """The loaded models; used by the owner thread only."""

    def __init__(
        self, runtime: Runtime, reader: Reader, description: Describer, options: IndexTTS2Options, digests: FileDigests,
        wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self._runtime = runtime
        self._reader = reader
        self._description = description
        self._options = options
        self._pace = chunk_pace(options.first_chunk, options.look_ahead)
        self._synthesiser = Synthesiser(runtime, options.steps, self._pace, wake)
        sentence, *_ = reader.segments(STATISTICS_TEXT, runtime.gpt.shape.max_text)
        decode = partial(decode_native, limit_s=MAX_S)
        self._voices = VoiceCache(runtime, options.voice_cache, decode, digests, sentence)
        self._emotions = EmotionCache(runtime, options.voice_cache, decode, digests)

    def synthesise(self, request: SpeechRequest) -> Audio:
        by_chunk = (
            self._options.stream == "chunk" if request.granularity is None else request.granularity is Granularity.TOKEN
        )
        delivery, segments = yield from in_turns(partial(self._prepared, request, by_chunk), "preparation")
        if by_chunk:
            yield from self._synthesiser.synthesise_by_chunk(delivery, segments)
        else:
            yield from self._synthesiser.synthesise_by_segment(delivery, segments, request.sentence_batch)

    def _prepared(self, request: SpeechRequest, by_chunk: bool, check: Check) -> tuple[Delivery, list[Segment]]:
        generation = request.generation
        if request.granularity is None:
            generation = replace(generation, num_beams=1)  # beam search is slow and needs complete segments
        opening = None if by_chunk else SHORT_OPENING
        segments = self._reader.segments(request.text, self._longest(generation), opening, check)
        if request.verbose:
            logger.info("%d segments of %s tokens, %s", len(segments), [len(s.ids) for s in segments], generation)
        voice = self._voices.get(request.voice.path, check)
        emotion = self._emotion(request.emotion or Emotion(), voice, generation.seed, check)
        return Delivery(voice, emotion, generation, self._duration_factor(request.speed)), segments

    def warm(self, times: StartTimes) -> None:
        """Record graphs and synthesise short texts in both modes, so that the first request is not slower."""
        noise: FloatSamples = (torch.randn(SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0)) / 10).numpy()
        voice = self._voices.analyse(noise, SAMPLE_RATE_HZ)
        if self._runtime.device.type == "cuda":
            with times.phase("record"):
                self._record()
        segments = [segment for text in WARM_UP_TEXTS for segment in self._reader.segments(text, 20)]
        known = next(self._pace.code_counts(self._runtime.acoustics))
        delivery = Delivery(voice, voice.emotion, Generation(max_mel_tokens=known + 1, num_beams=1, seed=0))
        with times.phase("synthesis"):
            for speech in (
                self._synthesiser.synthesise_by_chunk(delivery, segments),
                self._synthesiser.synthesise_by_segment(delivery, segments, 1),
            ):
                run_alone(speech, self.step)

    def calibrate(self, recording: Path, text: str, report: Callable[[str], None]) -> str:
        segments = self._reader.segments(text, self._runtime.gpt.shape.max_text)
        if not segments:
            raise too_short()
        return calibrate(self._runtime, self._voices.get(recording), segments[0], report)

    def step(self) -> bool:
        return self._runtime.writer.step()

    def has_room(self, active: int) -> bool:
        acoustics = self._runtime.acoustics
        code_s = acoustics.frames(100) * acoustics.samples_per_frame / SAMPLE_RATE_HZ / 100
        return keeps_deadlines(self._runtime.writer, self._synthesiser.thread, active + 1, code_s)

    def shrink(self) -> None:
        self._voices.shrink()
        self._emotions.shrink()

    def close(self) -> None:
        self._synthesiser.close()
        free_unused(self._runtime.device)

    def _record(self) -> None:
        acoustics, mel = self._runtime.acoustics, self._runtime.hearing.mel
        self._runtime.record()
        longest = acoustics.frames(RECORDED_CODES)
        slowest = RECORDED_SLOWDOWN if self._runtime.gpt.conditions_on_style else 1.0
        for pace, seconds in ((self._pace, STREAM_REFERENCE_S), (Pace(()), float(MAX_S))):
            record(acoustics, pace, round(seconds * mel.rate_hz / mel.hop), longest, self._runtime.writer.rows, slowest)

    def _emotion(self, emotion: Emotion, voice: AnalysedVoice, seed: int | None, check: Check) -> Tensor:
        """The emotion vector ``(width,)`` of a request."""
        if emotion.reference is not None:
            reference = self._emotions.get(emotion.reference.path, check)
            return self._runtime.emo_merged(voice.emotion, reference, emotion.weight)
        numbers: Sequence[float] | None = emotion.vector
        by_classifier = False
        if emotion.text is not None:
            numbers = self._description.read(emotion.text, check)
            check()
            by_classifier = self._description.name == "classifier"
            logger.info("emotion description converted by the %s: %s", self._description.name, numbers)
        if numbers is None:
            return voice.emotion
        if self._options.emotion_cap and not by_classifier:  # the model expects the classifier's scores unchanged
            numbers = capped(numbers)
        emotions = self._runtime.emotions
        rows = emotions.drawn(emotion_rng(seed)) if emotion.random else emotions.nearest(voice.style)
        return emotions.vector(weakened(numbers, emotion.weight), rows, voice.emotion)

    def _longest(self, generation: Generation) -> int:
        """Maximum number of text tokens of a segment."""
        gpt = self._runtime.gpt
        spoken = max(SHORTEST_LIMIT, generation.max_mel_tokens // CODES_PER_TOKEN[gpt.conditions_on_style])
        return min(generation.max_text_tokens_per_sentence, gpt.shape.max_text, spoken)

    def _duration_factor(self, speed: float) -> float:
        return 1 / speed if self._runtime.gpt.conditions_on_style else 1.0


def emotion_rng(seed: int | None) -> torch.Generator:
    """The generator for a random emotion; deterministic for a given seed."""
    drawn = random.SystemRandom().getrandbits(63) if seed is None else seed % 2**63
    return torch.Generator().manual_seed(drawn)
