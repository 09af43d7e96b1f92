"""The eleven voices, all made from the network's one, and which of them answers for a recording."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from streaming_server.engines.hibari.rendering import Timbre
from streaming_server.engines.recordings import Recording

_MAX_PITCH_CHANGE = 1.35
"""A preset's pitch is moved by no more than this factor towards a recording's."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One of the eleven voices."""

    name: str
    gender: Literal["male", "female"]
    register: str
    timbre: Timbre
    """``gain_db`` brings all to one loudness."""
    median_pitch_hz: float
    """Of its recording in ``reference_audios/``."""


PRESETS = (
    Preset("alloy", "male", "default", Timbre(0.66, 0.96, tilt_db=2.5, gain_db=1.0), 136),
    Preset("echo", "male", "resonant", Timbre(0.58, 0.90, tilt_db=1.5, gain_db=1.5), 121),
    Preset("fable", "male", "narrator", Timbre(0.54, 0.95, rate=0.95, tilt_db=2.0, gain_db=0.4), 112),
    Preset("onyx", "male", "deep", Timbre(0.43, 0.87, pitch_range=0.9, rate=0.97, tilt_db=1.0, gain_db=-0.2), 88),
    Preset("nova", "female", "lively", Timbre(1.18, 1.06, pitch_range=1.15, rate=1.04, gain_db=4.6), 247),
    Preset("shimmer", "female", "soft", Timbre(1.06, 1.03, pitch_range=0.85, rate=0.96, tilt_db=-1, gain_db=1.9), 216),
    Preset("ash", "male", "neutral", Timbre(0.62, 0.93, pitch_range=0.8, tilt_db=1.5, gain_db=1.4), 126),
    Preset(
        "ballad", "male", "ballad-like", Timbre(0.73, 0.97, pitch_range=1.25, rate=0.94, tilt_db=2, gain_db=4.1), 152
    ),
    Preset("coral", "female", "warm", Timbre(gain_db=2.8), 205),
    Preset("sage", "female", "wise", Timbre(0.86, 0.97, pitch_range=0.9, rate=0.96, gain_db=2.1), 176),
    Preset("verse", "male", "poetic", Timbre(0.50, 0.93, pitch_range=1.3, rate=0.95, tilt_db=2.0, gain_db=0.5), 107),
)
_BY_NAME = {preset.name: preset for preset in PRESETS}


def preset_for(recording: Recording) -> Preset:
    """The preset that a recording was made from, else the one nearest in pitch; the first where it has no pitch."""
    if recording.preset in _BY_NAME:
        return _BY_NAME[recording.preset]
    if recording.pitch_hz is None:
        return PRESETS[0]
    pitch_hz = recording.pitch_hz
    return min(PRESETS, key=lambda preset: abs(math.log(preset.median_pitch_hz / pitch_hz)))


def timbre_for(recording: Recording) -> Timbre:
    """The timbre of `preset_for`, with its pitch moved to the recording's median."""
    preset = preset_for(recording)
    if recording.preset in _BY_NAME or recording.pitch_hz is None:
        return preset.timbre
    factor = min(max(recording.pitch_hz / preset.median_pitch_hz, 1 / _MAX_PITCH_CHANGE), _MAX_PITCH_CHANGE)
    return replace(preset.timbre, pitch=preset.timbre.pitch * factor)
