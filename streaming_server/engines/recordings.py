"""What engines that do not clone learn from a reference recording."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anyio

from streaming_server.audio.decode import comment, decode_mono
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.engines.content_cache import ContentCache, FileDigests

PRESET_TAG = "preset: "
"""Stands before the preset's name in the comment tag of a recording that was made from a preset."""
_ANALYSIS_HZ = 16000
_ANALYSIS_S = 30.0
_MAX_CACHED = 256


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording as a voice."""

    preset: str
    """The preset that it was made from; empty for any other recording."""
    pitch_hz: float | None
    """Median fundamental frequency; None where nothing is voiced, or where the preset says it."""


class RecordingCache:
    """Analyses of recordings, by their content."""

    def __init__(self) -> None:
        self._kept = ContentCache[Recording](_MAX_CACHED, FileDigests())

    async def find(self, path: Path) -> Recording:
        """As `analysed`, which runs on another thread."""
        if (found := self._kept.peek(path)) is not None:
            return found
        return await anyio.to_thread.run_sync(self._kept.get, path, analysed)


def analysed(path: Path) -> Recording:
    """The preset or the pitch of a recording.

    Raises:
        VoiceFileMissing: there is no such file.
        VoiceUnreadable: it cannot be decoded.
    """
    _, tag, preset = comment(path).partition(PRESET_TAG)
    if tag:
        return Recording(preset, None)
    return Recording("", median_pitch_hz(decode_mono(path, _ANALYSIS_HZ, _ANALYSIS_S), _ANALYSIS_HZ))
