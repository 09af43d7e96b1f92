"""The description of the server for clients."""

from __future__ import annotations

import re
from typing import Any

from wyoming.event import Event

from streaming_server import __version__
from streaming_server.engines.base import EngineInfo
from streaming_server.speech.voices import VoiceLibrary

_USUAL_LANGUAGES = ("en", "zh")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-([a-z]{2}|[0-9]{3}))?")
"""Tags of a language and a region; a browser cannot name some other tags of espeak-ng."""
_OTHER_DOMAINS = ("asr", "handle", "intent", "wake", "mic", "snd")


async def info(engine: EngineInfo, voices: VoiceLibrary) -> Event:
    """Return one program with all voices.

    A voice without languages has those of the engine's presets. Languages that the engine reads on request and that
    belong to no voice are listed with every voice, since clients offer only what a voice lists.
    """
    spoken = tuple(dict.fromkeys(code for preset in engine.presets for code in preset.languages)) or _USUAL_LANGUAGES
    known = [*voices.all(), *await voices.uploaded()]
    own = {code.lower().partition("-")[0] for voice in known for code in voice.languages or spoken}
    others = [tag for tag in engine.languages if tag.partition("-")[0] not in own and _LANGUAGE.fullmatch(tag)]
    program = _artifact("streaming-server", f"Streaming text to speech, engine {engine.name}", __version__) | {
        "supports_synthesize_streaming": True,
        "voices": [
            _artifact(voice.name, voice.title or voice.name, engine.model_version)
            | {"languages": [*(voice.languages or spoken), *others], "speakers": None}
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
