"""The kinds of jobs beside speech: questions that whoever holds the engine answers.

Knows the engine's own description of itself; not how an answer reaches whoever asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from streaming_server.audio.decode import decode_native
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.domain import Capability, Voice
from streaming_server.errors import SpeechServerError
from streaming_server.ops.gpu import gpus
from streaming_server.speech.service import EngineState, SpeechService
from streaming_server.speech.voices import VoiceLibrary

SPEECH = "indextts.generate_speech"
_CAPABILITIES = (
    Capability.TEXT_TO_SPEECH,
    Capability.VOICE_CLONING,
    Capability.EMOTION_CONTROL,
    Capability.MULTI_LANGUAGE,
)
_MIDDLE_HZ = 165.0
"""Between the voices of most men and of most women."""
_HEARD_S = 10.0


async def health_check(service: SpeechService, voices: VoiceLibrary) -> dict[str, Any]:
    found = await asyncio.to_thread(gpus)
    is_ready = service.state is EngineState.READY
    return {
        "status": "healthy" if is_ready else "unhealthy",
        "service": "indextts_service",
        "gpu": {"available": bool(found), "count": len(found), "name": found[0].name if found else None},
        "model": "ready" if is_ready else service.state.value,
        "gpu_lock": "available" if service.slot.status().holder is None else "locked",
    }


async def get_model_info(service: SpeechService, voices: VoiceLibrary) -> dict[str, Any]:
    info = service.engine.info
    capabilities = {capability: capability in info.capabilities for capability in _CAPABILITIES}
    return {
        "status": "success",
        "model_info": {
            **model_identity(service),
            "model_path": info.model_dir,
            "status": "ready" if service.state is EngineState.READY else service.state.value,
            # A job is fetched once it is whole, however early a stream would begin.
            "capabilities": {**capabilities, "real_time": False},
        },
    }


async def list_voice_presets(service: SpeechService, voices: VoiceLibrary) -> dict[str, Any]:
    presets = await asyncio.to_thread(_presets, voices.list())
    return {"status": "success", "presets": presets, "total_count": len(presets)}


def model_identity(service: SpeechService) -> dict[str, str]:
    """Which model speaks, and where."""
    info = service.engine.info
    return {"model_type": info.model_type or info.name, "model_version": info.model_version, "device": info.device}


QUESTIONS: Mapping[str, Callable[[SpeechService, VoiceLibrary], Awaitable[dict[str, Any]]]] = {
    "indextts.health_check": health_check,
    "indextts.get_model_info": get_model_info,
    "indextts.list_voice_presets": list_voice_presets,
}
"""By the name of the job."""


def _presets(voices: list[Voice]) -> dict[str, dict[str, str]]:
    """By the names that requests take; the default is the first of them."""
    found: dict[str, dict[str, str]] = {}
    for voice in voices:
        try:
            pitch_hz = median_pitch_hz(*decode_native(voice.path, limit_s=_HEARD_S))
        except SpeechServerError:
            continue  # a file that cannot be decoded is no preset
        gender = "female" if (pitch_hz or 0.0) > _MIDDLE_HZ else "male"
        if not found:
            found["default"] = _preset("Default Voice", "默认语音", gender)
        found[voice.name] = _preset(voice.name, voice.path.name, gender)
    return found


def _preset(name: str, description: str, gender: str) -> dict[str, str]:
    return {"name": name, "description": description, "language": "multi", "gender": gender}
