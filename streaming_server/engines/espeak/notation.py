"""The International Phonetic Alphabet to espeak-ng's names of phonemes, which it reads between ``[[`` and ``]]``.

The names are those of its English voices: a voice drops the rest of a word behind a name that it lacks.
"""

from __future__ import annotations

import re

from streaming_server.engines.pronunciations import plain_ipa

PHONEME_LANGUAGE = "en-us"
"""The voice that has these names."""
_NAMES = {
    "aɪ": "aI", "aʊ": "aU", "eɪ": "eI", "oʊ": "oU", "əʊ": "oU", "ɔɪ": "OI", "tʃ": "tS", "dʒ": "dZ", "ɛə": "e@",
    "eə": "e@", "ɪə": "i@", "ʊə": "U@", "ɜː": "3:", "ɝː": "3:", "ɝ": "3:", "ɚ": "3", "iː": "i:", "uː": "u:", "ɑː": "A:",
    "ɔː": "O:", "ɒ": "0", "ɑ": "A:", "æ": "a", "ʌ": "V", "ə": "@", "ɐ": "a#", "ɛ": "E", "ɜ": "3:", "ɪ": "I", "ᵻ": "I2",
    "ɔ": "O", "ʊ": "U", "i": "i", "u": "u:", "e": "E", "a": "a", "o": "oU", "ɨ": "I2", "ʉ": "u:", "y": "y", "ø": "Y",
    "œ": "W", "ɯ": "u-", "ɤ": "V", "ʏ": "y",
    "b": "b", "d": "d", "f": "f", "h": "h", "ɦ": "h", "j": "j", "k": "k", "l": "l", "ɫ": "l", "m": "m", "n": "n",
    "p": "p", "r": "r", "ɹ": "r", "ɻ": "r", "ʁ": "r", "ʀ": "r", "s": "s", "t": "t", "v": "v", "ʋ": "v", "w": "w",
    "z": "z", "ɡ": "g", "ŋ": "N", "θ": "T", "ð": "D", "ʃ": "S", "ɕ": "S", "ʂ": "S", "ʒ": "Z", "ʑ": "Z", "ʐ": "Z",
    "x": "x", "χ": "x", "ç": "C", "ɾ": "t#", "ʔ": "?", "ɲ": "n^", "ʎ": "l^", "ɟ": "dZ", "c": "tS", "β": "v", "ɣ": "g",
    "ɸ": "f", "ʍ": "w", "ʦ": "ts", "ʣ": "dz", "ʧ": "tS", "ʤ": "dZ", "q": "k",
    "ˈ": "'", "ˌ": ",",
}  # fmt: skip
_SYMBOL = re.compile("|".join(sorted(_NAMES, key=len, reverse=True)))
_SEPARATOR = "|"
"""Keeps the names of two phonemes from being read as that of one."""


def phoneme_names(ipa: str) -> str:
    """Return the names of phonemes; those that espeak-ng lacks are left out, and so it may be empty."""
    names = [_NAMES[symbol] for symbol in _SYMBOL.findall(plain_ipa(ipa))]
    if not any(name not in {"'", ","} for name in names):
        return ""
    # Without a mark, the word would be unstressed in its sentence.
    joined = "" if "'" in names or "," in names else "'"
    for name in names:
        joined += name if name in {"'", ","} or not joined or joined[-1] in "'," else _SEPARATOR + name
    return joined
