"""Texts of which some words have given phonemes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from streaming_server.domain import Pronunciation

_TIES = str.maketrans("", "", "\u0361\u035c\u203f. /[]()")
_SPELLINGS = str.maketrans({"g": "ɡ", "'": "ˈ", ":": "ː", "’": "ʼ"})
_DIPHTHONGS = {
    "aɪ": "I",
    "aʊ": "W",
    "dz": "ʣ",
    "dʒ": "ʤ",
    "eɪ": "A",
    "oʊ": "O",
    "əʊ": "Q",
    "ts": "ʦ",
    "tʃ": "ʧ",
    "ɔɪ": "Y",
}
_ENGLISH = {"ɝː": "ɜɹ", "ɝ": "ɜɹ", "ɚ": "əɹ", "r": "ɹ", "ɫ": "l", "ː": ""}
_VOWELS = "aeiouyæɑɐɒɔəɘɚɛɜɝɞɤɨɪɯɵøœɶʉʊʌʏᵻAIOQWY"
_INFLECTION = re.compile(r"['’]?s(?!\w)")
_SIBILANTS, _VOICELESS = "szʃʒʧʤʦʣ", "ptkfθ"
_STRESS = re.compile("[ˈˌ]")
_EARLY_STRESS = re.compile(rf"([ˈˌ])([^{_VOWELS}ˈˌ]+)(?=[{_VOWELS}])")


def masked(text: str, given: Iterable[Pronunciation], mask: str = "0") -> str:
    """The text with a character in place of those that have phonemes, so that none of their words is divided.

    A digit belongs to the language before it, and ends no sentence.
    """
    for each in given:
        text = text[: each.start] + mask * (each.end - each.start) + text[each.end :]
    return text


def plain_ipa(ipa: str) -> str:
    """Phonemes with one spelling of each, without ties, dots and blanks."""
    return unicodedata.normalize("NFD", ipa).replace("c\u0327", "ç").translate(_TIES).translate(_SPELLINGS)


def in_misaki_alphabet(ipa: str, language: str) -> str:
    """Phonemes as Kokoro and hibari take them: a stress mark stands before its vowel, and there is at least one.

    Args:
        ipa: phonemes of one or several words.
        language: of the surrounding text, as an espeak-ng voice.
    """
    phonemes = plain_ipa(ipa)
    for pair, letter in _DIPHTHONGS.items():
        phonemes = phonemes.replace(pair, letter)
    if language.startswith("en"):
        for phoneme, letter in _ENGLISH.items():
            phonemes = phonemes.replace(phoneme, letter)
    phonemes = phonemes if _STRESS.search(phonemes) else "ˈ" + phonemes
    return _EARLY_STRESS.sub(r"\2\1", phonemes)


def converted(
    sentence: str,
    given: Sequence[Pronunciation],
    convert: Callable[[str], str],
    spell: Callable[[str], str],
    *,
    is_english: bool,
) -> str:
    """The phonemes of a sentence; each part with given phonemes becomes one word.

    In English a plural or genitive ending directly behind such a part belongs to this word.

    Args:
        sentence: the text.
        given: places within the sentence.
        convert: converts text to phonemes.
        spell: converts given phonemes to the same alphabet; may return an empty string.
        is_english: the sentence is in English.
    """
    if not given:
        return convert(sentence)
    words, at = "", 0
    for each in given:
        words = _joined(words, _between(sentence[at : each.start], convert))
        ending = _INFLECTION.match(sentence, each.end) if is_english else None
        at = ending.end() if ending else each.end
        spelled = spell(each.ipa)
        words = _joined(words, spelled + _inflection(spelled) * bool(ending) or convert(sentence[each.start : at]))
    return _joined(words, _between(sentence[at:], convert))


def _inflection(phonemes: str) -> str:
    """The sound of a plural or genitive s; none without phonemes."""
    last = phonemes[-1:]
    if not last:
        return ""
    return "ᵻz" if last in _SIBILANTS else "s" if last in _VOICELESS else "z"


def _between(text: str, convert: Callable[[str], str]) -> str:
    if any(map(str.isalnum, text)):
        opening = text[: len(text) - len(text.lstrip(" ,;:.!?…—"))].strip()
        return opening + " " * bool(opening) + convert(text.lstrip(" ,;:.!?…—"))
    return text.strip()


def _joined(words: str, more: str) -> str:
    is_mark = not more[:1].isalpha() and more[:1] not in {"ˈ", "ˌ"}
    return f"{words}{more}" if not words or not more or is_mark else f"{words} {more}"
