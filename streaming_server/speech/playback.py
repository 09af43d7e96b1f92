"""Underruns of a client that plays a stream while it is sent."""

from __future__ import annotations

PREBUFFER_S = 0.1
"""Assumed delay between sending audio and playing it, at the start and after an underrun."""


class PlaybackClock:
    """Models a client that plays one stream continuously."""

    def __init__(self) -> None:
        self._audio_s = 0.0
        self._dry_s: float | None = None
        """The moment at which nothing is left to play; None before the first audio."""

    def sent(self, now_s: float, audio_s: float, *, is_behind: bool) -> float:
        """Count audio that is ready to be sent; returns the length of the underrun that it ends, else 0.0.

        Args:
            now_s: the monotonic clock.
            audio_s: all audio of the stream so far.
            is_behind: earlier audio has not been taken yet, so that a gap is the reader's.
        """
        added_s, self._audio_s = audio_s - self._audio_s, audio_s
        if self._dry_s is None:
            self._dry_s = now_s + PREBUFFER_S + added_s
            return 0.0
        gap_s = 0.0 if is_behind else max(now_s - self._dry_s, 0.0)
        self._dry_s = max(now_s + (PREBUFFER_S if gap_s else 0.0), self._dry_s) + added_s
        return gap_s

    def awaited_text(self, began_s: float, ended_s: float) -> None:
        """Between these moments the stream waited for words of its client; running dry meanwhile is no underrun."""
        if self._dry_s is not None and began_s <= self._dry_s <= ended_s:
            self.restart()

    def restart(self) -> None:
        """The client plays from the next audio on."""
        self._dry_s = None
