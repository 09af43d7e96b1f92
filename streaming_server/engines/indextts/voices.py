"""Analysis of reference recordings for 1.0 and 1.5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from streaming_server.domain import FloatSamples
from streaming_server.engines.content_cache import FileDigests
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.threads import Check
from streaming_server.engines.torch.voice_cache import Decode, RecordingCache, require_finite

MAX_S = 60
"""Seconds of a recording that are analysed; the Conformer's memory grows quadratically with the length."""


@dataclass(frozen=True, slots=True)
class AnalysedVoice:
    """Conditioning of a voice for decoding and vocoding."""

    conditioning: Tensor
    """``(latents, width)``"""
    speaker: Tensor
    """``(speaker width,)``"""


class VoiceCache(RecordingCache[AnalysedVoice]):
    """Caches the analyses of voices."""

    max_s = MAX_S

    def __init__(self, runtime: Runtime, capacity: int, decode: Decode, digests: FileDigests) -> None:
        super().__init__(capacity, decode, digests)
        self._runtime = runtime

    def _analyse(self, path: Path, samples: FloatSamples, rate_hz: int, check: Check) -> AnalysedVoice:
        mel = self._runtime.log_mel(self._runtime.resample(torch.from_numpy(samples), rate_hz))
        check()
        conditioning = self._runtime.condition(mel)
        check()
        voice = AnalysedVoice(conditioning, self._runtime.speaker(mel))
        require_finite(path, voice.conditioning, voice.speaker)
        return voice
