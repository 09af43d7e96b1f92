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
from streaming_server.engines.indextts2.calibration import Way, calibrate, recommended
from streaming_server.engines.indextts2.chunks import CHUNK, Pace
from streaming_server.engines.indextts2.description import Describer, describer
from streaming_server.engines.indextts2.emotion import capped, weakened
from streaming_server.engines.indextts2.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts2.folder import Checkpoint, External
from streaming_server.engines.indextts2.languages import ROWS
from streaming_server.engines.indextts2.options import IndexTTS2Options
from streaming_server.engines.indextts2.reading import Reader
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.indextts2.stream import Delivery, Narrator
from streaming_server.engines.indextts2.synthesis import record
from streaming_server.engines.indextts2.voices import MAX_S, AnalysedVoice, EmotionCache, VoiceCache
from streaming_server.engines.threads import Check
from streaming_server.engines.torch.model_engine import ModelEngine
from streaming_server.errors import EngineNotReady, EngineUnavailable

logger = logging.getLogger(__name__)

WARM_UP_TEXTS = ("你好。", "Hello.")
"""One for each of the normalisers, which load when they are first used."""
STEADYING_TEXT = "今天天气很好，我们去公园走走。"
"""Said once in each voice, unheard: what it gives steadies the first chunks of a stream."""
SHORT_OPENING = 24
"""Most tokens of a text's first segment, where it can be cut at a mark: sound starts early."""
CODES_PER_TOKEN = {False: 12, True: 6}
"""Codes that slow speech takes for a token, by whether it is 2.5; segments are cut so that a request's codes do."""
SHORTEST_LIMIT = 20
"""Tokens below which segments are not cut for that."""
RECORDED_CODES = 600
"""Whole segments of up to so many codes are solved in shapes that were recorded."""

CAPABILITIES = frozenset(Capability) - {
    Capability.SPEED,
    Capability.DIALOGUE,
    Capability.SCENE,
    Capability.SMART_VOICE,
}
"""Of both versions; 2.5 has the speed too."""


class IndexTTS2Engine(ModelEngine):
    """An ``Engine`` around one folder of 2.0 or 2.5.

    Args:
        options: Where the models are and how they run. On CUDA the precision ``auto`` is fp16; the flow computes in
            bf16 where that is half.

    Raises:
        EngineUnavailable: a file is missing or broken, the device cannot be used, or an option is out of its range.
    """

    def __init__(self, options: IndexTTS2Options) -> None:
        super().__init__(options.device, options.chosen_precision)
        language = None if options.language == "auto" else options.language
        if language not in {None, *ROWS}:
            raise EngineUnavailable(f"TTS_LANGUAGE={options.language}: one of auto, {', '.join(ROWS)} is needed")
        self._options = options
        external = External(
            options.w2vbert_dir, options.campplus_file, options.bigvgan_dir, options.semantic_codec_file
        )  # fmt: skip
        self._checkpoint = Checkpoint.open(options.model_dir, external)
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
            capabilities=CAPABILITIES | ({Capability.SPEED} if checkpoint.version == "2.5" else set()),
            emotion_text_by="words" if checkpoint.classifier is None else "classifier",
        )

    async def calibrate(self, recording: Path, text: str, tell: Callable[[Way], None]) -> Way:
        """The way to stream to recommend, of all that are measured; each is told as it is.

        Args:
            recording: Of the voice.
            text: Whose first segment is spoken.
            tell: Called on another thread.

        Raises:
            EngineNotReady: ``warm`` has not ended.
            InvalidRequest: the text is too short.
            VoiceUnreadable: the recording cannot be decoded.
        """
        loaded = self._loaded
        if not isinstance(loaded, Loaded):
            raise EngineNotReady
        return await self._owner.call(lambda: loaded.calibrate(recording, text, tell))

    def _load(self) -> Loaded:
        runtime = self._checkpoint.load(self._device, self._dtype)
        description = describer(self._checkpoint.classifier, self._device)
        loaded = Loaded(runtime, self._reader, description, self._options, self._digests)
        loaded.warm()
        return loaded


class Loaded:
    """What is there once the models are loaded; touched by the owner thread only."""

    def __init__(
        self, runtime: Runtime, reader: Reader, description: Describer, options: IndexTTS2Options, digests: FileDigests
    ) -> None:
        self._runtime = runtime
        self._reader = reader
        self._description = description
        self._options = options
        self._pace = replace(CHUNK, look_ahead=options.look_ahead)
        self._narrator = Narrator(runtime, options.steps, self._pace)
        sentence, *_ = reader.segments(STEADYING_TEXT, runtime.gpt.shape.max_text)
        decode = partial(decode_native, limit_s=MAX_S)
        self._voices = VoiceCache(runtime, options.voice_cache, decode, digests, options.reference_s, sentence)
        self._emotions = EmotionCache(runtime, options.voice_cache, decode, digests)

    def speak(self, request: SpeechRequest, check: Check) -> Audio:
        generation = request.generation
        if request.granularity is None:
            generation = replace(generation, num_beams=1)  # more are slow, and nobody asked for whole segments
        by_chunk = (
            self._options.stream == "chunk" if request.granularity is None else request.granularity is Granularity.TOKEN
        )
        opening = None if by_chunk else SHORT_OPENING
        segments = self._reader.segments(request.text, self._longest(generation), opening, check)
        if request.verbose:
            logger.info("%d segments of %s tokens, %s", len(segments), [len(s.ids) for s in segments], generation)
        voice = self._voices.get(request.voice.path, check)
        emotion = self._emotion(request.emotion or Emotion(), voice, generation.seed, check)
        delivery = Delivery(voice, emotion, generation, self._duration_factor(request.speed))
        if by_chunk:
            yield from self._narrator.speak_by_chunk(delivery, segments)
        else:
            yield from self._narrator.speak_by_segment(delivery, segments, request.sentence_batch)

    def warm(self) -> None:
        """Record what can be recorded, then speak a little both ways: the first request is as fast as the next."""
        noise: FloatSamples = (torch.randn(SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0)) / 10).numpy()
        voice = self._voices.analyse(noise, SAMPLE_RATE_HZ)
        if self._runtime.device.type == "cuda":
            self._record(voice)
        segments = [segment for text in WARM_UP_TEXTS for segment in self._reader.segments(text, 20)]
        known = next(self._pace.code_counts(self._runtime.acoustics))
        delivery = Delivery(voice, voice.emotion, Generation(max_mel_tokens=known + 1, num_beams=1, seed=0))
        for speech in (
            self._narrator.speak_by_chunk(delivery, segments),
            self._narrator.speak_by_segment(delivery, segments, 1),
        ):
            for _ in speech:
                pass

    def calibrate(self, recording: Path, text: str, tell: Callable[[Way], None]) -> Way:
        segment, *_ = self._reader.segments(text, self._runtime.gpt.shape.max_text)
        ways = []
        for way in calibrate(self._runtime, self._voices.get(recording), segment):
            tell(way)
            ways.append(way)
        return recommended(ways)

    def close(self) -> None:
        self._narrator.close()
        if self._runtime.device.type == "cuda":
            torch.cuda.empty_cache()

    def _record(self, voice: AnalysedVoice) -> None:
        acoustics, mel = self._runtime.acoustics, self._runtime.hearing.mel
        self._runtime.record(voice.conditioning, voice.emotion)
        longest = acoustics.frames(RECORDED_CODES)
        for pace, seconds in ((self._pace, self._options.reference_s), (Pace(()), float(MAX_S))):
            record(acoustics, pace, round(seconds * mel.rate_hz / mel.hop), longest)

    def _emotion(self, emotion: Emotion, voice: AnalysedVoice, seed: int | None, check: Check) -> Tensor:
        """The emotion vector ``(width,)`` of a request."""
        if emotion.reference is not None:
            reference = self._emotions.get(emotion.reference.path, check)
            return self._runtime.emo_merged(voice.emotion, reference, emotion.weight)
        numbers: Sequence[float] | None = emotion.vector
        by_classifier = False
        if emotion.text is not None:
            numbers = self._description.read(emotion.text)
            check()
            by_classifier = self._description.name == "classifier"
            logger.info("the description of the emotion was read by the %s: %s", self._description.name, numbers)
        if numbers is None:
            return voice.emotion
        if self._options.emotion_cap and not by_classifier:  # the classifier's scores are what the model was tuned with
            numbers = capped(numbers)
        emotions = self._runtime.emotions
        rows = emotions.drawn(emotion_rng(seed)) if emotion.random else emotions.nearest(voice.style)
        return emotions.vector(weakened(numbers, emotion.weight), rows, voice.emotion)

    def _longest(self, generation: Generation) -> int:
        """Most text tokens of a segment."""
        gpt = self._runtime.gpt
        spoken = max(SHORTEST_LIMIT, generation.max_mel_tokens // CODES_PER_TOKEN[gpt.speaks_by_style])
        return min(generation.max_text_tokens_per_sentence, gpt.shape.max_text, spoken)

    def _duration_factor(self, speed: float) -> float:
        return 1 / speed if self._runtime.gpt.speaks_by_style else 1.0


def emotion_rng(seed: int | None) -> torch.Generator:
    """For the draws of an emotion; the same for the same seed."""
    drawn = random.SystemRandom().getrandbits(63) if seed is None else seed % 2**63
    return torch.Generator().manual_seed(drawn)
