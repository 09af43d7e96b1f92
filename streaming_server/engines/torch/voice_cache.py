"""A cache of analysed recordings, shared by the model runtimes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from streaming_server.domain import FloatSamples
from streaming_server.engines.content_cache import ContentCache, FileDigests
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.arrays import all_finite
from streaming_server.errors import VoiceUnreadable

MIN_S = 0.1
"""Minimum length of a recording: a shorter one has too few frames for the encoders."""
NOT_FINITE = "cannot be analysed: the model computes values that are not finite for it"

Analysis = TypeVar("Analysis")
Decode = Callable[[Path], tuple[FloatSamples, int]]
"""Decodes a file to samples and their rate in Hz."""


class RecordingCache(ABC, Generic[Analysis]):
    """Caches the analyses of the ``capacity`` most recently used recordings."""

    max_s: int
    """Seconds of a recording that are analysed."""

    def __init__(self, capacity: int, decode: Decode, digests: FileDigests) -> None:
        self._decode = decode
        self._kept = ContentCache[Analysis](capacity, digests)

    def get(self, path: Path, check: Check = never_cancelled) -> Analysis:
        """Return the analysis of a recording.

        Raises:
            VoiceFileMissing: the file does not exist.
            VoiceUnreadable: it cannot be decoded or analysed.
        """
        return self._kept.get(path, lambda path: self._analysed(path, check))

    def shrink(self) -> None:
        """Remove all analyses and halve the capacity."""
        self._kept.shrink()

    @abstractmethod
    def _analyse(self, path: Path, samples: FloatSamples, rate_hz: int, check: Check) -> Analysis:
        """Analyse the samples of a recording; the path is for errors only."""

    def _analysed(self, path: Path, check: Check) -> Analysis:
        samples, rate_hz = self._decode(path)
        if samples.size < MIN_S * rate_hz:
            raise VoiceUnreadable(path.name, f"is shorter than {MIN_S} s")
        check()
        return self._analyse(path, samples[: self.max_s * rate_hz], rate_hz, check)


def require_finite(path: Path, *tensors: Tensor) -> None:
    """
    Raises:
        VoiceUnreadable: a tensor has values that are not finite.
    """
    if not all_finite(*tensors):
        raise VoiceUnreadable(path.name, NOT_FINITE)
