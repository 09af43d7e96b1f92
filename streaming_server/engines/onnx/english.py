"""English text to phonemes in misaki's alphabet, used by the networks of hibari and Kokoro."""

from __future__ import annotations

import logging
import re
import unicodedata

from hibari.g2p import G2P

from streaming_server.text import word_pieces

log = logging.getLogger(__name__)

MAX_WORD_CHARACTERS = 30
_MIN_PIECE_CHARACTERS = 10
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD_CHARACTERS + 1},}}")
_PRICE = re.compile(r"(?<![€£$\d.,])(\d++(?:,\d{3})*+(?:\.\d++)?+) ?([€£$])(?! ?\d|\w)", re.ASCII)
"""A price with its sign at the end."""
_LETTER_A = re.compile(r"(?<!\w)A(?= [A-Z](?!\.?[\w'’-]))|(?<=\b[A-Z] )A(?!\w)")
"""A single capital A beside another single capital, which is no article."""
_RANGE = re.compile(r"(?<=\d(?:st|nd|rd|th|0s)) ?[-–—] ?(?=\d{1,4}(?:st|nd|rd|th|0s|s)\b)")
"""The hyphen of a range such as 3rd–5th or 1990s–2000s."""
_GROUPED = re.compile(
    r"(?<!\d)(?<!\d )[1-9]\d{0,2}(?:(?:[\u00a0\u2009\u202f]\d{3})++|(?: \d{3})*(?: 000)++)(?!\d| \d{3}\b)", re.ASCII
)
"""A number whose thousands are divided by blanks: by plain ones only where it ends with 000, as they also divide the
numbers of a list."""
_MINUS = re.compile(r"\u2212(?=\s*[\d.$£€])")
_INVISIBLE = (0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
"""Soft hyphens, joiners and marks of direction, which may stand within a word."""
_SYMBOLS: dict[int, str | None] = {
    **dict.fromkeys(_INVISIBLE),
    ord("−"): "-",
    ord("℃"): "°C",
    ord("℉"): "°F",
    ord("№"): "No. ",
    ord("≤"): " at most ",
    ord("≥"): " at least ",
}
"""Characters that the package does not read, and what it reads instead."""
_LONG_NUMBER = re.compile(r"\d[\d,]{18,}")
_REPEATED_MARK = re.compile(r"([^\w\s])\1{3,}")
_REPEATED_PUNCTUATION = re.compile(r"([;:,.!?—…\"“”()])(?:\s*\1)+")
_UNSPOKEN = re.compile(r"[^\w\s!-~¡-ÿ‐-⁯₠-⃏™←-⇿½-¾]+")


class EnglishPhonemes:
    """hibari's conversion: numbers, dates, units and abbreviations, a lexicon, a network for unknown words."""

    def __init__(self) -> None:
        self._g2p = G2P()
        self._g2p("Zbyx.")  # the network for unknown words is loaded lazily

    def __call__(self, sentence: str) -> str:
        """Return the phonemes of one sentence; empty if it has no pronounceable characters.

        The time is quadratic in the length of a word, so long words are split.
        """
        text = _MINUS.sub(" minus ", unicodedata.normalize("NFC", sentence)).translate(_SYMBOLS)
        text = _REPEATED_MARK.sub(r"\1\1\1", _UNSPOKEN.sub(" ", text))
        # [word](/phonemes/) is markup of misaki, which texts must not use.
        text = text.replace("](", "] (")
        text = _RANGE.sub(" to ", text)
        text = _GROUPED.sub(lambda number: ",".join(number[0].split()), text)
        text = _PRICE.sub(r"\2\1", text)
        text = _LETTER_A.sub("[A](/ˈA/)", text)
        # Numbers above 10 ** 36 are not supported.
        text = _LONG_NUMBER.sub(lambda number: " ".join(number[0].replace(",", "")), text)
        text = _LONG_WORD.sub(
            lambda word: " ".join(word_pieces(word[0], _MIN_PIECE_CHARACTERS, MAX_WORD_CHARACTERS)), text
        )
        phonemes = self._converted(text)
        return _REPEATED_PUNCTUATION.sub(r"\1", phonemes).strip() if any(map(str.isalpha, phonemes)) else ""

    def _converted(self, text: str) -> str:
        try:
            return str(self._g2p(text))
        except Exception:  # the package fails on some rare tokens; the other words are kept
            words = text.split()
            if len(words) < 2:
                log.warning("phonemes: no conversion for %r", text[:MAX_WORD_CHARACTERS], exc_info=True)
                return ""
            return " ".join(map(self._converted, words))
