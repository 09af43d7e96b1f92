"""Analysis of reference recordings for 2.0 and 2.5, as a voice or as an emotion."""

from __future__ import annotations

from collections.abc import Sequence
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
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.voice_cache import NOT_FINITE, Decode, RecordingCache, require_finite
from streaming_server.errors import EngineFailed, VoiceUnreadable

MAX_S = 15
"""Seconds of a recording that are analysed, as in the official implementation."""

STREAM_REFERENCE_S = 5.0
"""Seconds of the recording in ``AnalysedVoice.stream_reference``: more would cost time in every solve of a chunk."""

MAX_STATISTICS_CODES = 100
"""Maximum number of codes of the sentence that provides a voice's regulator statistics."""


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
    statistics: Tensor | None = None
    """Regulator statistics of a sentence in this voice; streams pool them with their own."""


class VoiceCache(RecordingCache[AnalysedVoice]):
    """Caches the analyses of voices.

    Args:
        runtime: The models.
        capacity: Maximum number of cached voices.
        decode: Decodes a file to samples and their rate.
        digests: The engine's file digests.
        sentence: Decoded once per voice to compute its ``statistics``; None omits them.
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
        return AnalysedVoice(
            conditioning, style, emotion, whole, part, self._statistics(conditioning, emotion, check)
        )  # fmt: skip

    def _analyse(self, path: Path, samples: FloatSamples, rate_hz: int, check: Check) -> AnalysedVoice:
        try:
            voice = self.analyse(samples, rate_hz, check)
        except EngineFailed as error:  # raised by decoding the sentence for the statistics
            raise VoiceUnreadable(path.name, NOT_FINITE) from error
        reference = voice.full_reference
        require_finite(path, voice.conditioning, voice.style, voice.emotion, reference.mel, reference.mu)
        return voice

    def _statistics(self, conditioning: Tensor, emotion: Tensor, check: Check) -> Tensor | None:
        """Compute the statistics with greedy decoding, so that they depend on the voice only."""
        if self._sentence is None:
            return None
        decoding = self._runtime.decode(
            conditioning,
            emotion,
            self._sentence.ids,
            MAX_STATISTICS_CODES,
            do_sample=False,
            language=self._sentence.language,
        )
        codes: list[int] = []
        latents: list[Tensor] = []
        with closing(decoding):
            for code, latent in decoding:
                check()
                if code < self._runtime.sounds:
                    codes.append(code)
                    latents.append(latent)
        if not codes:
            return None
        return self._runtime.acoustics.statistics(torch.tensor(codes), torch.stack(latents))


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
