"""Text to phonemes in Kokoro's alphabet, and phonemes to pieces for the model."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator

from streaming_server.engines.chinese_numbers import as_spoken

VOCABULARY = {
    character: number
    for number, characters in (
        (1, ";:,.!?"),
        (9, '—…"()“” \u0303ʣʥʦʨᵝꭧAI'),
        (31, "O"),
        (33, "Q"),
        (35, "ST"),
        (39, "W"),
        (41, "Yᵊabcdef"),
        (50, "hijklmnopqrstuvwxyzɑɐɒæ"),
        (75, "βɔɕç"),
        (80, "ɖðʤə"),
        (85, "ɚɛɜ"),
        (90, "ɟ"),
        (92, "ɡ"),
        (99, "ɥ"),
        (101, "ɨɪʝ"),
        (110, "ɯɰŋɳɲɴø"),
        (118, "ɸθœ"),
        (123, "ɹ"),
        (125, "ɾɻ"),
        (128, "ʁɽʂʃʈʧ"),
        (135, "ʊʋ"),
        (138, "ʌɣɤ"),
        (142, "χʎ"),
        (147, "ʒʔ"),
        (156, "ˈˌː"),
        (162, "ʰ"),
        (164, "ʲ"),
        (169, "↓"),
        (171, "→↗↘"),
        (177, "ᵻ"),
    )
    for number, character in enumerate(characters, number)
}
"""The model's ids of phonemes."""

FIRST_PIECE, MAX_PIECE = 32, 150
"""Numbers of phonemes: about 2 and 10 seconds of speech."""
_GROWTH = 1.25
"""Growth of a piece relative to the previous one, whose audio lasts while the next one is synthesised."""
_JAPANESE_PACKAGES = ("fugashi", "jaconv", "mojimoji")
_CLAUSE_ENDS = ",;:—.!?…"

Convert = Callable[[str], str]


def english() -> Convert:
    from streaming_server.engines.onnx.english import EnglishPhonemes

    return EnglishPhonemes()


def mandarin() -> Convert:
    import jieba
    from misaki.zh import ZHG2P

    jieba.setLogLevel(logging.WARNING)
    convert = ZHG2P()
    return lambda text: str(convert(as_spoken(text)[0])[0])


def missing_japanese() -> str:
    """Which package for Japanese is missing, as a phrase that follows a text's name; empty if none is."""
    missing = next((name for name in _JAPANESE_PACKAGES if importlib.util.find_spec(name) is None), "")
    needed = f"is Japanese, for which the kokoro engine needs {missing}: scripts/install kokoro japanese"
    return needed if missing else ""


def japanese() -> Convert:
    with warnings.catch_warnings(action="ignore"):
        from misaki.cutlet import Cutlet
    convert = Cutlet()
    return lambda text: str(convert(text)[0])


CONVERTERS: dict[str, Callable[[], Convert]] = {"en-us": english, "cmn": mandarin, "ja": japanese}
"""Converters by language of `streaming_server.engines.espeak.languages`."""


def next_limit(limit: int) -> int:
    """Return the maximum length of the piece after one of ``limit``."""
    return min(round(limit * _GROWTH), MAX_PIECE)


def split(phonemes: str, limit: int) -> Iterator[str]:
    """Split a sentence into pieces that grow from ``limit`` phonemes, after clauses or between words."""
    while len(phonemes) > limit * _GROWTH:
        cut = max((phonemes.rfind(mark + " ", limit // 3, limit) + 1 for mark in _CLAUSE_ENDS), default=0)
        cut = cut or phonemes.rfind(" ", limit // 3, limit) + 1 or limit
        yield phonemes[:cut].strip()
        phonemes = phonemes[cut:].strip()
        limit = next_limit(limit)
    if phonemes:
        yield phonemes


def tokens(phonemes: str) -> list[int]:
    """Return the model's ids without padding; characters outside its alphabet are dropped."""
    return [VOCABULARY[character] for character in phonemes if character in VOCABULARY]
