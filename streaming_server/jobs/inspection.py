"""Jobs that return information about the engine, and voice presets. Results are plain data, formatted by a dialect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming_server.audio.decode import decode_native
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.domain import Capability, Gender, Voice
from streaming_server.errors import SpeechServerError
from streaming_server.speech.service import SpeechService
from streaming_server.speech.voices import VoiceLibrary

SPEECH = "indextts.generate_speech"
QUESTIONS = ("indextts.health_check", "indextts.get_model_info", "indextts.list_voice_presets")
"""Names of the jobs without speech."""
DEFAULT = "default"
PRESETS: Mapping[str, Gender] = {"male_01": "male", "female_01": "female"}
"""Names of the first voice of each gender."""
CAPABILITIES = (
    Capability.TEXT_TO_SPEECH,
    Capability.VOICE_CLONING,
    Capability.EMOTION_CONTROL,
    Capability.MULTI_LANGUAGE,
)
_GENDERS_MEET_HZ = 165.0
"""Threshold in Hz between typical male and female pitch."""
_LISTENED_S = 10.0


@dataclass(frozen=True, slots=True)
class Preset:
    """A voice with a name that requests may use."""

    name: str
    voice: Voice
    gender: Gender


class VoicePresets:
    """Names of voices: those of the recordings, the default, and the first voice of each gender."""

    def __init__(self, voices: VoiceLibrary) -> None:
        self.voices = voices
        self._genders: dict[tuple[Path, int], Gender | None] = {}
        """Genders by recording and modification time; None if it cannot be decoded."""

    async def find(self, name: str | None) -> Voice | None:
        """Find a voice by name or by the id of an upload; the name None means the default voice."""
        if name is not None and (found := await self.voices.find(name)):
            return found
        if name in {None, DEFAULT}:
            return self.voices.default
        return await asyncio.to_thread(self._first, PRESETS[name]) if name in PRESETS else None

    def list(self) -> list[Preset]:
        """Return all presets, the default first. Blocks while new recordings are decoded."""
        voices = self.voices.list() or self.voices.all()
        known = [Preset(voice.name, voice, gender) for voice in voices if (gender := self._gender(voice))]
        if not known:
            return []
        aliases = [Preset(DEFAULT, known[0].voice, known[0].gender)]
        for name, gender in PRESETS.items():
            first = next((preset for preset in known if preset.gender == gender), known[0])
            aliases.append(Preset(name, first.voice, first.gender))
        own = {preset.name for preset in known}
        return [*(alias for alias in aliases if alias.name not in own), *known]

    def _first(self, gender: Gender) -> Voice:
        return next((voice for voice in self.voices.all() if self._gender(voice) == gender), self.voices.default)

    def _gender(self, voice: Voice) -> Gender | None:
        if voice.is_preset or voice.gender:
            return voice.gender or "male"
        try:
            key = voice.path, voice.path.stat().st_mtime_ns
            if key not in self._genders:
                self._genders[key] = _gender(voice.path)
            return self._genders[key]
        except OSError:
            return None


def _gender(path: Path) -> Gender | None:
    try:
        pitch_hz = median_pitch_hz(*decode_native(path, limit_s=_LISTENED_S))
    except SpeechServerError:
        return None
    return "female" if (pitch_hz or 0.0) > _GENDERS_MEET_HZ else "male"


class Inspector:
    """Returns information about one engine."""

    def __init__(
        self, service: SpeechService, presets: VoicePresets, devices: Callable[[], Sequence[Mapping[str, Any]]]
    ) -> None:
        """``devices``: returns the GPUs of this machine, each with its ``name``; may block."""
        self._service = service
        self._presets = presets
        self._devices = devices
        self._answers: Mapping[str, Callable[[], Awaitable[dict[str, Any]]]] = dict(
            zip(QUESTIONS, (self._health, self._model_info, self._voice_presets), strict=True)
        )

    async def answer(self, question: str) -> dict[str, Any]:
        """Return the result of one of `QUESTIONS`."""
        return await self._answers[question]()

    def model(self) -> dict[str, str]:
        """Return the model and its device."""
        info = self._service.engine.info
        return {"model_type": info.model_type or info.name, "model_version": info.model_version, "device": info.device}

    async def _health(self) -> dict[str, Any]:
        devices = await asyncio.to_thread(self._devices)
        return {
            "engine_state": self._service.state,
            "slot_is_held": self._service.slot.status().holder is not None,
            "gpus": [device["name"] for device in devices],
        }

    async def _model_info(self) -> dict[str, Any]:
        info = self._service.engine.info
        return {
            "model": self.model(),
            "model_path": info.model_dir,
            "engine_state": self._service.state,
            "capabilities": [name for name in CAPABILITIES if name in info.capabilities],
        }

    async def _voice_presets(self) -> dict[str, Any]:
        presets = await asyncio.to_thread(self._presets.list)
        return {
            "presets": [
                {
                    "name": preset.name,
                    "file": preset.voice.path.name,
                    "gender": preset.gender,
                    "languages": preset.voice.languages,
                }
                for preset in presets
            ]
        }
