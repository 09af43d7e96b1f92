"""The description of the server for clients."""

from __future__ import annotations

from typing import Any

from wyoming.event import Event

from streaming_server import __version__
from streaming_server.engines.base import EngineInfo
from streaming_server.speech.voices import VoiceLibrary

_USUAL_LANGUAGES = ("en", "zh")
_OTHER_DOMAINS = ("asr", "handle", "intent", "wake", "mic", "snd")


async def info(engine: EngineInfo, voices: VoiceLibrary) -> Event:
    """Return one program with all voices; a voice without languages has those of the engine's presets."""
    spoken = tuple(dict.fromkeys(code for preset in engine.presets for code in preset.languages)) or _USUAL_LANGUAGES
    known = [*voices.all(), *await voices.uploaded()]
    program = _artifact("streaming-server", f"Streaming text to speech, engine {engine.name}", __version__) | {
        "supports_synthesize_streaming": True,
        "voices": [
            _artifact(voice.name, voice.title or voice.name, engine.model_version)
            | {"languages": list(voice.languages or spoken), "speakers": None}
            for voice in known
        ],
    }
    return Event("info", {**{domain: [] for domain in _OTHER_DOMAINS}, "tts": [program]})


def _artifact(name: str, description: str, version: str) -> dict[str, Any]:
    attribution = {"name": "", "url": ""}
    return {
        "name": name,
        "attribution": attribution,
        "installed": True,
        "description": description,
        "version": version,
    }
