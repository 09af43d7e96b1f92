"""Pauses between texts that the engine synthesises in separate calls."""

from __future__ import annotations

from itertools import islice

import numpy as np

from streaming_server.domain import FloatSamples, Voice
from streaming_server.segmentation import sentences
from streaming_server.text import PAUSE, end_pause_s, pause_s

_QUIET = 0.005
"""Amplitude below which samples are silence."""
_MARGIN_S = 0.12
"""Silence that engines keep behind the last word; more is a pause of their own."""
_OPENING = " \n\t([{“‘«\"'¿¡"
_SENTENCE_S = pause_s(".")
_MAX_COMPARED = 100
"""Characters on each side that decide about a pause."""


class Joints:
    """Makes the pauses between the calls of an engine, which itself pauses only within a call.

    The punctuation of the texts decides how long a pause is. What the engine's audio ends with counts towards it.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._text = ""
        """Since the last explicit pause."""
        self._voice: Voice | None = None
        self._has_audio = False
        self._silent = 0
        """Samples at the end of the audio."""

    def heard(self, samples: FloatSamples) -> None:
        """Add audio."""
        loud = np.flatnonzero(np.abs(samples) > _QUIET)
        self._silent = samples.size - 1 - int(loud[-1]) if loud.size else self._silent + samples.size
        self._has_audio = self._has_audio or samples.size > 0

    def said(self, text: str, voice: Voice | None = None) -> None:
        """Add the text of the audio, or one that has none.

        Args:
            text: the text.
            voice: as for `before`.
        """
        explicit = list(PAUSE.finditer(text))
        if explicit:
            rest = text[explicit[-1].end() :]
            self._text = rest if rest.strip() else ""  # a line break adds nothing to an explicit pause
        else:
            self._text = (self._text + text)[-_MAX_COMPARED:]
        self._voice = voice

    def turn_ended(self) -> None:
        """Add the end of a speaker's turn, which pauses at least as long as the end of a line."""
        if self._text.strip():
            self._text += "\n"
        self._voice = None

    def paused(self) -> None:
        """An explicit pause follows; nothing is added to it."""
        self._text = ""

    def before(self, text: str, tempo: float, voice: Voice | None = None) -> FloatSamples:
        """The silence that is missing before a text.

        Args:
            text: follows the text so far.
            tempo: divides the pause.
            voice: the voice of the text, which may continue a sentence in the same voice; None if it begins another.
        """
        if not self._has_audio or PAUSE.match(text.lstrip()):
            return np.empty(0, np.float32)
        own_s = max(self._silent / self._rate_hz - _MARGIN_S, 0.0)
        is_same_sentence = voice is not None and voice == self._voice
        missing_s = _pause_between_s(self._text, text, is_same_sentence=is_same_sentence) / tempo - own_s
        return np.zeros(max(round(missing_s * self._rate_hz), 0), np.float32)


def _pause_between_s(before: str, after: str, *, is_same_sentence: bool) -> float:
    first = next((place for place, character in enumerate(after) if character.isalnum()), len(after))
    marked = (before + after[:first]).rstrip(_OPENING)
    found_s = max(end_pause_s(before), pause_s(before.rstrip(_OPENING)), pause_s(marked))
    if is_same_sentence and found_s >= _SENTENCE_S:
        # "Mr." and "e.g." end no sentence, nor does a mark before a word in lower case.
        _, _, word = marked.rpartition(" ")
        if len(list(islice(sentences(f"{word} {after[first : first + _MAX_COMPARED]}"), 2))) < 2:
            return 0.0
    return found_s
