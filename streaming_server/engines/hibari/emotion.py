"""Emotions as changes of pitch, pitch range, rate, energy and spectral tilt."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from typing import NamedTuple

from streaming_server.domain import EMOTIONS, EmotionVector
from streaming_server.engines.hibari.rendering import Timbre


class _Effect(NamedTuple):
    """The changes of an emotion at full strength."""

    pitch: float
    """Factor, as the next two values."""
    pitch_range: float
    rate: float
    gain_db: float
    tilt_db: float


_EFFECTS = {
    "happy": _Effect(1.10, 1.40, 1.10, 1.0, 1.0),
    "angry": _Effect(1.03, 1.25, 1.10, 4.0, 1.5),
    "sad": _Effect(0.92, 0.60, 0.86, -4.0, -1.5),
    "afraid": _Effect(1.16, 1.15, 1.18, -1.0, 0.0),
    "disgusted": _Effect(0.94, 1.10, 0.88, 1.0, 0.5),
    "melancholic": _Effect(0.93, 0.50, 0.80, -5.0, -2.0),
    "surprised": _Effect(1.18, 1.60, 1.06, 2.0, 1.0),
    "calm": _Effect(0.97, 0.75, 0.92, -3.0, -1.0),
}
_RANDOM_PITCH, _RANDOM_RANGE, _RANDOM_RATE = 0.08, 0.25, 0.10
_MIN_CHANGE = 0.4
"""Minimum share of a random change; a smaller one would be inaudible."""
_RATE_RANGE = (0.6, 1.5)
_PITCH_RANGE_RANGE = (0.2, 2.0)


def with_emotion(timbre: Timbre, vector: EmotionVector, weight: float, rng: Random | None = None) -> Timbre:
    """Return a timbre with an emotion applied.

    Args:
        timbre: the neutral timbre.
        vector: share of each emotion.
        weight: 0-1, scales everything.
        rng: varies the rendering audibly; None for no variation.
    """
    effects = [(_EFFECTS[emotion], weight * share) for emotion, share in zip(EMOTIONS, vector, strict=True)]
    pitch = timbre.pitch * math.prod(effect.pitch**strength for effect, strength in effects)
    pitch_range = timbre.pitch_range * math.prod(effect.pitch_range**strength for effect, strength in effects)
    rate = timbre.rate * math.prod(effect.rate**strength for effect, strength in effects)
    if rng is not None:
        pitch *= 1 + weight * _RANDOM_PITCH * _draw(rng)
        pitch_range *= 1 + weight * _RANDOM_RANGE * _draw(rng)
        rate *= 1 + weight * _RANDOM_RATE * _draw(rng)
    return replace(
        timbre,
        pitch=pitch,
        pitch_range=_bounded(pitch_range, _PITCH_RANGE_RANGE),
        rate=_bounded(rate, _RATE_RANGE),
        gain_db=timbre.gain_db + sum(effect.gain_db * strength for effect, strength in effects),
        tilt_db=timbre.tilt_db + sum(effect.tilt_db * strength for effect, strength in effects),
    )


def _draw(rng: Random) -> float:
    """Return a number in -1 … 1, but not near 0."""
    return rng.choice((-1, 1)) * rng.uniform(_MIN_CHANGE, 1)


def _bounded(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
