"""The eleven voices."""

from __future__ import annotations

from dataclasses import dataclass

from streaming_server.domain import Voice
from streaming_server.engines.espeak.library import Timbre
from streaming_server.engines.recording_voices import nearest_in_pitch


@dataclass(frozen=True, slots=True)
class Preset:
    """A voice: a timbre of espeak-ng."""

    name: str
    timbre: Timbre
    median_pitch_hz: float
    """Median pitch of its English recording."""


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
"""The presets as voices."""


def nearest_preset(pitch_hz: float | None) -> Preset:
    """Return the preset nearest in pitch; the first one for a recording without a pitch."""
    if pitch_hz is None:
        return PRESETS[0]
    return nearest_in_pitch(PRESETS, lambda preset: preset.median_pitch_hz, pitch_hz)
