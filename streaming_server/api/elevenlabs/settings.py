"""The voice settings of the dialect: what becomes of them, and which of them the engine cannot honour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from streaming_server.api.http import Body
from streaming_server.api.requests import Seed
from streaming_server.audio.stretch import SPEED_MAX, SPEED_MIN
from streaming_server.domain import Capability, Generation
from streaming_server.errors import InvalidRequest

_TEMPERATURE = Generation().temperature
_RANGES = {"speed": (SPEED_MIN, SPEED_MAX), "stability": (0, 1), "similarity_boost": (0, 1), "style": (0, 1)}


class VoiceSettings(Body):
    speed: float | None = None
    """Speaking rate, 0.25-4; the pitch does not change."""
    stability: float | None = None
    """0-1; lowers the sampling temperature of an engine that samples."""
    similarity_boost: float | None = None
    """0-1; not honoured."""
    style: float | None = None
    """0-1; not honoured."""
    use_speaker_boost: bool | None = None
    """Not honoured."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a text is to be said."""

    generation: Generation
    speed: float
    ignored: tuple[str, ...]
    """The settings that were given and cannot be honoured."""


def delivery(capabilities: frozenset[Capability], settings: VoiceSettings | None, seed: Seed | None) -> Delivery:
    """What an engine of these capabilities can do of the settings.

    Raises:
        InvalidRequest: a number outside its range.
    """
    settings = settings or VoiceSettings()
    for name, (low, high) in _RANGES.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            message = f"voice_settings.{name} must be from {low:g} to {high:g}, not {value:g}"
            raise InvalidRequest(message, "voice_settings")
    generation = Generation(seed=seed)
    samples = Capability.GENERATION_PARAMETERS in capabilities
    if samples and settings.stability is not None:
        # At 0.5, ElevenLabs' default, the temperature is the model's own.
        generation = replace(generation, temperature=_TEMPERATURE * (1.5 - settings.stability))

    def ignored() -> Iterator[str]:
        for name in ("stability", "similarity_boost", "style", "use_speaker_boost"):
            if getattr(settings, name) is not None and not (name == "stability" and samples):
                yield f"voice_settings.{name}"

    return Delivery(generation, settings.speed or 1.0, tuple(ignored()))
