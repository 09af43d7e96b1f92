"""How much of a worker's time one listener takes."""

from __future__ import annotations

MAX_LOAD = 0.9
"""Share of its time that a worker may need to keep up with all listeners."""
_DECAY = 0.9
"""Weight of all earlier work together relative to the latest, in the measured speed."""


class Load:
    """The measured speed of a worker, of recent work."""

    def __init__(self) -> None:
        self._busy_s = self._audio_s = 0.0

    def add(self, busy_s: float, audio_s: float) -> None:
        """Count work of some duration, and the duration of the audio that it gave."""
        self._busy_s = _DECAY * self._busy_s + busy_s
        self._audio_s = _DECAY * self._audio_s + audio_s

    @property
    def s_per_audio_s(self) -> float:
        """Seconds of work per second of audio; 0 before the first."""
        return self._busy_s / self._audio_s if self._audio_s else 0.0

    def has_room(self, active: int) -> bool:
        """Whether the worker keeps up with one more listener than ``active``."""
        return (active + 1) * self.s_per_audio_s <= MAX_LOAD
