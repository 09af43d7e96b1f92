"""What engines that do not clone learn from a reference recording."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anyio

from streaming_server.audio.decode import comment, decode_mono
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.errors import VoiceFileMissing

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
    """Analyses each version of a file once."""

    def __init__(self) -> None:
        self._found: dict[tuple[Path, int, int], Recording] = {}

    async def find(self, path: Path) -> Recording:
        """As `analysed`, which runs on another thread."""
        try:
            stat = path.stat()  # noqa: ASYNC240
        except OSError as error:
            raise VoiceFileMissing(path.name) from error
        key = path, stat.st_mtime_ns, stat.st_size
        if key not in self._found:
            if len(self._found) >= _MAX_CACHED:
                del self._found[next(iter(self._found))]
            self._found[key] = await anyio.to_thread.run_sync(analysed, path)
        return self._found[key]


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
