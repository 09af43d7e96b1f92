"""An emotion as parameters of espeak-ng: rate, pitch, pitch range and volume."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from typing import NamedTuple

from streaming_server.domain import EMOTIONS, EmotionVector
from streaming_server.engines.espeak.library import Timbre


class _Effect(NamedTuple):
    """Changes of a timbre at the full strength of an emotion."""

    pitch: float
    """Added, in espeak's steps."""
    pitch_range: float
    """Added, in espeak's steps."""
    rate: float
    """A factor."""
    volume: float
    """A factor."""


_EFFECTS = {
    "happy": _Effect(14, 30, 1.15, 1.10),
    "angry": _Effect(4, 22, 1.12, 1.35),
    "sad": _Effect(-12, -25, 0.82, 0.80),
    "afraid": _Effect(22, 12, 1.28, 0.85),
    "disgusted": _Effect(-8, 8, 0.88, 1.10),
    "melancholic": _Effect(-8, -32, 0.75, 0.70),
    "surprised": _Effect(24, 38, 1.08, 1.20),
    "calm": _Effect(-4, -18, 0.90, 0.85),
}
_RANDOM_PITCH, _RANDOM_RANGE, _RANDOM_RATE = 12.0, 12.0, 0.15
_MIN_CHANGE = 0.4
"""Smallest share of a random change; less is not audible."""


def with_emotion(timbre: Timbre, vector: EmotionVector, weight: float, random: Random | None = None) -> Timbre:
    """The timbre with the emotion applied.

    Args:
        timbre: the voice as it is.
        vector: share of each emotion, 0-1.
        weight: 0-1, scales everything.
        random: varies the rendering by an audible amount; None: always the same.
    """
    effects = [(_EFFECTS[emotion], weight * share) for emotion, share in zip(EMOTIONS, vector, strict=True)]
    pitch = sum(effect.pitch * strength for effect, strength in effects)
    pitch_range = sum(effect.pitch_range * strength for effect, strength in effects)
    rate = math.prod(effect.rate**strength for effect, strength in effects)
    volume = math.prod(effect.volume**strength for effect, strength in effects)
    if random is not None:
        pitch += weight * _RANDOM_PITCH * _draw(random)
        pitch_range += weight * _RANDOM_RANGE * _draw(random)
        rate *= 1 + weight * _RANDOM_RATE * _draw(random)
    return replace(
        timbre,
        pitch=_bounded(timbre.pitch + pitch, 0, 99),
        pitch_range=_bounded(timbre.pitch_range + pitch_range, 0, 99),
        rate_wpm=_bounded(timbre.rate_wpm * rate, 80, 450),
        volume=_bounded(timbre.volume * volume, 0, 200),
    )


def _draw(random: Random) -> float:
    """-1 … 1, but not near 0."""
    return random.choice((-1, 1)) * random.uniform(_MIN_CHANGE, 1)


def _bounded(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)
