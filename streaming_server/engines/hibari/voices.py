"""The thirteen voices derived from the network's voice, and the assignment of recordings to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from streaming_server.domain import Voice
from streaming_server.engines.hibari.rendering import Timbre
from streaming_server.engines.recording_voices import RecordingVoices, nearest_in_pitch

_MAX_PITCH_CHANGE = 1.35
"""Maximum factor by which the pitch of a preset is moved towards that of a recording."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One of the voices."""

    name: str
    gender: Literal["male", "female"]
    register: str
    timbre: Timbre
    """``gain_db`` equalises the loudness of the voices."""
    median_pitch_hz: float
    """Median pitch of the text of the recordings in ``reference_audios/``."""


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
"""The presets with a recording in ``reference_audios/``, one of which replaces any other recording."""
NEWER_PRESETS = (
    Preset("marin", "female", "clear", Timbre(0.93, 1.03, pitch_range=1.1, rate=1.02, tilt_db=0.5, gain_db=2.4), 194),
    Preset("cedar", "male", "mellow", Timbre(0.565, 0.91, pitch_range=1.1, rate=0.98, tilt_db=2.2, gain_db=1.6), 117),
)
"""The presets without a recording."""
BY_NAME = {preset.name: preset for preset in (*PRESETS, *NEWER_PRESETS)}
VOICES = tuple(
    Voice(preset.name, is_preset=True, title=preset.name.capitalize(), languages=("en",), gender=preset.gender)
    for preset in BY_NAME.values()
)
"""All presets as voices."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """The preset that is used for a voice."""

    preset: Preset
    pitch: float = 1.0
    """Factor of the preset's pitch."""

    @property
    def timbre(self) -> Timbre:
        """Of the preset at that pitch."""
        return replace(self.preset.timbre, pitch=self.preset.timbre.pitch * self.pitch)

    @property
    def median_pitch_hz(self) -> float:
        """Of its speech."""
        return self.preset.median_pitch_hz * self.pitch


class Speakers:
    """Assigns presets to voices: by name, otherwise as `RecordingVoices`."""

    def __init__(self) -> None:
        self._recordings = RecordingVoices([Speaker(preset) for preset in PRESETS], nearest)

    async def find(self, voice: Voice) -> Speaker:
        """
        Raises:
            VoiceFileMissing: the recording does not exist.
            VoiceUnreadable: it cannot be decoded.
        """
        return Speaker(BY_NAME[voice.name]) if voice.is_preset else await self._recordings.find(voice.path)


def nearest(pitch_hz: float | None) -> Speaker:
    """Return the preset nearest in pitch, moved to that pitch; the first preset for a recording without a pitch."""
    if pitch_hz is None:
        return Speaker(PRESETS[0])
    preset = nearest_in_pitch(PRESETS, lambda preset: preset.median_pitch_hz, pitch_hz)
    factor = pitch_hz / preset.median_pitch_hz
    return Speaker(preset, min(max(factor, 1 / _MAX_PITCH_CHANGE), _MAX_PITCH_CHANGE))
