"""Assigns a voice to each recording, for engines that do not clone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import anyio

from streaming_server.audio.decode import decode_mono
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.engines.content_cache import ContentCache, FileDigests

_ANALYSIS_HZ = 16000
_ANALYSIS_S = 30.0
_MAX_CACHED = 256
T = TypeVar("T")


class RecordingVoices(Generic[T]):
    """Finds the voice of a recording: by the names ``voice_01``, ``voice_02`` …, otherwise by its median pitch."""

    def __init__(self, shipped: Sequence[T], nearest: Callable[[float | None], T]) -> None:
        """
        Args:
            shipped: the voices of ``voice_01``, ``voice_02`` … in ``reference_audios/``.
            nearest: returns the voice for a pitch in Hz; None if the recording has no pitch.
        """
        self._shipped = {f"voice_{number:02}": voice for number, voice in enumerate(shipped, 1)}
        self._nearest = nearest
        self._by_content = ContentCache[T](_MAX_CACHED, FileDigests())

    async def find(self, recording: Path) -> T:
        """
        Raises:
            VoiceFileMissing: the file does not exist.
            VoiceUnreadable: it cannot be decoded.
        """
        found = self._by_content.peek(recording)
        if (shipped := self._shipped.get(recording.stem)) is not None:
            return shipped
        if found is not None:
            return found
        return await anyio.to_thread.run_sync(self._by_content.get, recording, self._analyse)

    def _analyse(self, recording: Path) -> T:
        return self._nearest(median_pitch_hz(decode_mono(recording, _ANALYSIS_HZ, _ANALYSIS_S), _ANALYSIS_HZ))


def nearest_in_pitch(voices: Iterable[T], pitch_of: Callable[[T], float], pitch_hz: float) -> T:
    """Return the voice with the smallest musical distance to a pitch."""
    return min(voices, key=lambda voice: abs(math.log(pitch_of(voice) / pitch_hz)))
