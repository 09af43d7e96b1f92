"""How an emotion sounds with espeak-ng: rate, pitch, pitch range and volume.

Knows espeak's parameters; not where the emotion came from, and no audio.
"""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from typing import NamedTuple

from streaming_server.domain import EMOTIONS, EmotionVector
from streaming_server.engines.espeak.library import Timbre


class _Effect(NamedTuple):
    """Of an emotion at its full strength."""

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
_LEAST_CHANGE = 0.4
"""Of what may be drawn: less would not be heard."""


def with_emotion(timbre: Timbre, vector: EmotionVector, weight: float, random: Random | None = None) -> Timbre:
    """The timbre as somebody who feels so would speak.

    Args:
        timbre: the voice as it is.
        vector: how much of each emotion.
        weight: 0-1, scales everything.
        random: draws how this one speaker renders it, by a change that is always heard; None: always the same.
    """
    felt = [(_EFFECTS[emotion], weight * share) for emotion, share in zip(EMOTIONS, vector, strict=True)]
    pitch = sum(effect.pitch * strength for effect, strength in felt)
    pitch_range = sum(effect.pitch_range * strength for effect, strength in felt)
    rate = math.prod(effect.rate**strength for effect, strength in felt)
    volume = math.prod(effect.volume**strength for effect, strength in felt)
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
    return random.choice((-1, 1)) * random.uniform(_LEAST_CHANGE, 1)


def _bounded(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)
