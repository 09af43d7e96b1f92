"""Analysis of reference recordings for 2.0 and 2.5, as a voice or as an emotion."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from streaming_server.domain import FloatSamples
from streaming_server.engines.content_cache import FileDigests
from streaming_server.engines.indextts2.features import ANALYSIS_RATE_HZ
from streaming_server.engines.indextts2.flow import Reference
from streaming_server.engines.indextts2.reading import Segment
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.threads import Check, Waiting, never_cancelled
from streaming_server.engines.torch.sampling import Sampling
from streaming_server.engines.torch.voice_cache import Decode, RecordingCache, require_finite

MAX_S = 15
"""Seconds of a recording that are analysed, as in the official implementation."""

STREAM_REFERENCE_S = 5.0
"""Seconds of the recording in ``AnalysedVoice.stream_reference``: more would cost time in every solve of a chunk."""

MAX_STATISTICS_CODES = 100
"""Maximum number of codes of the sentence that provides a voice's regulator statistics."""

GREEDY = Sampling(do_sample=False)


@dataclass(frozen=True, slots=True)
class AnalysedVoice:
    """Conditioning of a voice."""

    conditioning: Tensor
    """Speaker tokens ``(n, width)``."""
    style: Tensor
    """``(style width,)``."""
    emotion: Tensor
    """Its own emotion vector ``(width,)``."""
    full_reference: Reference
    """The flow's reference for segments: the complete recording."""
    stream_reference: Reference
    """The flow's reference for streams: the last seconds of the recording, since every solve processes it again."""
    statistics: Statistics | None = None


class Statistics:
    """Regulator statistics of a sentence in one voice; streams pool them with their own.

    They take up to `MAX_STATISTICS_CODES` codes, so they are computed when a stream first needs them.

    Args:
        sentence: What is decoded.
    """

    def __init__(self, sentence: Segment) -> None:
        self._sentence = sentence
        self._computed: Tensor | None = None
        self._is_computed = False

    def of(self, runtime: Runtime, voice: AnalysedVoice) -> Generator[Waiting | None, None, Tensor | None]:
        """Decode the sentence with other prompts, and greedily, so that the statistics depend on the voice only.

        Yields as `Runtime.join`, and None in place of a code. The result is None if the sentence has no sounds.

        Raises:
            EngineFailed: the model computes values that are not finite.
        """
        if not self._is_computed:
            prefix = runtime.prefix(voice.conditioning, voice.emotion, self._sentence.ids, self._sentence.language)
            codes: list[int] = []
            latents: list[Tensor] = []
            with closing(runtime.join(prefix, MAX_STATISTICS_CODES, GREEDY)) as pairs:
                for pair in pairs:
                    if isinstance(pair, Waiting):
                        yield pair
                        continue
                    if pair[0] < runtime.sounds:
                        codes.append(pair[0])
                        latents.append(pair[1])
                    yield None
                if codes:
                    self._computed = runtime.acoustics.statistics(torch.tensor(codes), torch.stack(latents))
            self._is_computed = True
        return self._computed


class VoiceCache(RecordingCache[AnalysedVoice]):
    """Caches the analyses of voices.

    Args:
        runtime: The models.
        capacity: Maximum number of cached voices.
        decode: Decodes a file to samples and their rate.
        digests: The engine's file digests.
        sentence: What the ``statistics`` of voices are computed of; None omits them.
    """

    max_s = MAX_S

    def __init__(
        self, runtime: Runtime, capacity: int, decode: Decode, digests: FileDigests, sentence: Segment | None
    ) -> None:
        super().__init__(capacity, decode, digests)
        self._runtime = runtime
        self._sentence = sentence

    def analyse(
        self, wav: Sequence[float] | FloatSamples, rate_hz: int, check: Check = never_cancelled
    ) -> AnalysedVoice:
        """Analyse the voice of samples ``(n,)``."""
        runtime = self._runtime
        mel_rate_hz = runtime.hearing.mel.rate_hz
        wide = runtime.resample(torch.as_tensor(wav), rate_hz, mel_rate_hz)[: MAX_S * mel_rate_hz]
        narrow = runtime.resample(wide, mel_rate_hz, ANALYSIS_RATE_HZ)
        check()
        features = runtime.features(narrow)
        check()
        mel, style = runtime.mel22(wide), runtime.campplus_style(narrow)
        check()
        conditioning = runtime.spk_cond(style if runtime.gpt.conditions_on_style else features)
        emotion = runtime.emo(features)
        check()
        frames = round(STREAM_REFERENCE_S * mel_rate_hz / runtime.hearing.mel.hop)
        whole = runtime.acoustics.reference(features, mel, style)
        part = runtime.acoustics.reference(features, mel, style, frames)
        statistics = None if self._sentence is None else Statistics(self._sentence)
        return AnalysedVoice(conditioning, style, emotion, whole, part, statistics)

    def _analyse(self, path: Path, samples: FloatSamples, rate_hz: int, check: Check) -> AnalysedVoice:
        voice = self.analyse(samples, rate_hz, check)
        reference = voice.full_reference
        require_finite(path, voice.conditioning, voice.style, voice.emotion, reference.mel, reference.mu)
        return voice


class EmotionCache(RecordingCache[Tensor]):
    """Caches the emotion vectors ``(width,)`` of recordings."""

    max_s = MAX_S

    def __init__(self, runtime: Runtime, capacity: int, decode: Decode, digests: FileDigests) -> None:
        super().__init__(capacity, decode, digests)
        self._runtime = runtime

    def _analyse(self, path: Path, samples: FloatSamples, rate_hz: int, check: Check) -> Tensor:
        narrow = self._runtime.resample(torch.from_numpy(samples), rate_hz, ANALYSIS_RATE_HZ)
        features = self._runtime.features(narrow)
        check()
        emotion = self._runtime.emo(features)
        require_finite(path, emotion)
        return emotion
