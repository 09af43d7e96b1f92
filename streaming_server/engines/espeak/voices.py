"""The eleven voices, and which of them answers for a recording, since espeak-ng does not clone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import anyio

from streaming_server.audio.decode import decode_mono
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.domain import Voice
from streaming_server.engines.content_cache import ContentCache, FileDigests
from streaming_server.engines.espeak.library import Timbre
from streaming_server.errors import VoiceFileMissing

_ANALYSIS_HZ = 16000
_ANALYSIS_S = 30.0
_MAX_CACHED = 256


@dataclass(frozen=True, slots=True)
class Preset:
    """A speaker of espeak-ng."""

    name: str
    timbre: Timbre
    median_pitch_hz: float
    """Of its recording in English."""


PRESETS = (
    Preset("alloy", Timbre(), 99),
    Preset("echo", Timbre("m3", pitch=58, pitch_range=45), 109),
    Preset("fable", Timbre("adam", pitch=44, rate_wpm=160), 93),
    Preset("onyx", Timbre("klatt", pitch=26, rate_wpm=160, volume=200), 80),
    Preset("nova", Timbre("f2", pitch=70, pitch_range=70, rate_wpm=190), 240),
    Preset("shimmer", Timbre("f1", pitch=46, rate_wpm=160, volume=80), 168),
    Preset("ash", Timbre("max", pitch=66, pitch_range=40), 115),
    Preset("ballad", Timbre("Andy", pitch=80, pitch_range=70, rate_wpm=145), 136),
    Preset("coral", Timbre("linda", pitch=42, rate_wpm=165), 204),
    Preset("sage", Timbre("steph", pitch=52, pitch_range=40, rate_wpm=155), 185),
    Preset("verse", Timbre("m4", pitch=41, pitch_range=70, rate_wpm=150), 89),
)
BY_NAME = {preset.name: preset for preset in PRESETS}
_BY_STEM = {f"voice_{number:02}": preset for number, preset in enumerate(PRESETS, 1)}
_GENDERS_MEET_HZ = 160.0
VOICES = tuple(
    Voice(
        preset.name,
        is_preset=True,
        title=preset.name.capitalize(),
        languages=("en", "zh"),
        gender="female" if preset.median_pitch_hz > _GENDERS_MEET_HZ else "male",
    )
    for preset in PRESETS
)
"""The presets as voices that can be asked for."""


class PresetCache:
    """Which preset answers for a recording: by the name of ``voice_01`` … ``voice_11``, else by the content."""

    def __init__(self) -> None:
        self._kept = ContentCache[Preset](_MAX_CACHED, FileDigests())

    async def find(self, recording: Path) -> Preset:
        """As `preset_for`, which runs on another thread."""
        if preset := preset_by_name(recording):
            return preset
        if (found := self._kept.peek(recording)) is not None:
            return found
        return await anyio.to_thread.run_sync(self._kept.get, recording, preset_for)


def preset_for(recording: Path) -> Preset:
    """The preset of ``voice_01`` … ``voice_11``; for any other recording the one nearest to its median pitch.

    Raises:
        VoiceFileMissing: there is no such file.
        VoiceUnreadable: it cannot be decoded.
    """
    return preset_by_name(recording) or nearest_preset(
        median_pitch_hz(decode_mono(recording, _ANALYSIS_HZ, _ANALYSIS_S), _ANALYSIS_HZ)
    )


def preset_by_name(recording: Path) -> Preset | None:
    """
    Raises:
        VoiceFileMissing: the name has a preset, but there is no such file.
    """
    preset = _BY_STEM.get(recording.stem)
    if preset and not recording.is_file():
        raise VoiceFileMissing(recording.name)
    return preset


def nearest_preset(pitch_hz: float | None) -> Preset:
    """By musical distance; the first preset for a recording without a pitch."""
    if pitch_hz is None:
        return PRESETS[0]
    return min(PRESETS, key=lambda preset: abs(math.log(preset.median_pitch_hz / pitch_hz)))
