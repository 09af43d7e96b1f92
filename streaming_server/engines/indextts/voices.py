"""Analysis of reference recordings for 1.0 and 1.5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from streaming_server.domain import FloatSamples
from streaming_server.engines.content_cache import ContentCache, FileDigests
from streaming_server.engines.indextts.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.arrays import all_finite
from streaming_server.errors import VoiceUnreadable

MAX_S = 60
"""Seconds of a recording that are analysed; the Conformer's memory grows quadratically with the length."""
MIN_S = 0.1
"""Minimum length of a recording: a shorter one has too few frames for the encoders."""

TOO_SHORT = f"is shorter than {MIN_S} s"
NOT_FINITE = "cannot be analysed: the model computes values that are not finite for it"

Decode = Callable[[Path], tuple[FloatSamples, int]]
"""Decodes a file to samples and their rate in Hz."""


@dataclass(frozen=True, slots=True)
class AnalysedVoice:
    """Conditioning of a voice for decoding and vocoding."""

    conditioning: Tensor
    """``(latents, width)``"""
    speaker: Tensor
    """``(speaker width,)``"""


class VoiceCache:
    """Caches the analyses of the ``capacity`` most recently used voices."""

    def __init__(self, runtime: Runtime, capacity: int, decode: Decode, digests: FileDigests) -> None:
        self._runtime = runtime
        self._decode = decode
        self._kept = ContentCache[AnalysedVoice](capacity, digests)

    def get(self, path: Path, check: Check = never_cancelled) -> AnalysedVoice:
        """Return the analysis of a recording.

        Raises:
            VoiceFileMissing: the file does not exist.
            VoiceUnreadable: it cannot be decoded or analysed.
        """
        return self._kept.get(path, lambda path: self._analyse(path, check))

    def shrink(self) -> None:
        """Forget all recordings, and keep half as many from now on."""
        self._kept.shrink()

    def _analyse(self, path: Path, check: Check) -> AnalysedVoice:
        samples, rate_hz = self._decode(path)
        check()
        wav = self._runtime.resample(torch.from_numpy(samples[: MAX_S * rate_hz]), rate_hz)
        if wav.numel() < MIN_S * SAMPLE_RATE_HZ:
            raise VoiceUnreadable(path.name, TOO_SHORT)
        mel = self._runtime.log_mel(wav)
        check()
        conditioning = self._runtime.condition(mel)
        check()
        voice = AnalysedVoice(conditioning, self._runtime.speaker(mel))
        if not all_finite(voice.conditioning, voice.speaker):
            raise VoiceUnreadable(path.name, NOT_FINITE)
        return voice
