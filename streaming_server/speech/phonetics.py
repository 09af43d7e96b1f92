"""X-SAMPA and the CMU dictionary's ARPABET to the International Phonetic Alphabet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

MAX_PHONEMES = 200
"""Maximum number of characters of one pronunciation."""

_XSAMPA = {
    **{letter: letter for letter in "abcdefhijklmnopqrstuvwxyz"},
    **dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "ɑβçðɛɱɣɥɪɲɬʎɯŋɔʋɒʁʃθʊʌʍχʏʒ", strict=True)),
    **dict(zip("g@{}&?123456789", "ɡəæʉɶʔɨøɜɾɫɐɤɵœ", strict=True)),
    "b_<": "ɓ", "d_<": "ɗ", "g_<": "ɠ", "d`": "ɖ", "l`": "ɭ", "n`": "ɳ", "r`": "ɽ", "s`": "ʂ", "t`": "ʈ", "z`": "ʐ",
    "r\\`": "ɻ", "@`": "ɚ", "3`": "ɝ", "B\\": "ʙ", "G\\": "ɢ", "H\\": "ʜ", "I\\": "ᵻ", "J\\": "ɟ", "K\\": "ɮ",
    "L\\": "ʟ", "M\\": "ɰ", "N\\": "ɴ", "O\\": "ʘ", "R\\": "ʀ", "X\\": "ħ", "h\\": "ɦ", "j\\": "ʝ", "l\\": "ɺ",
    "p\\": "ɸ", "r\\": "ɹ", "s\\": "ɕ", "v\\": "ʋ", "x\\": "ɧ", "z\\": "ʑ", "3\\": "ɞ", "?\\": "ʕ", "@\\": "ɘ",
    '"': "ˈ", "%": "ˌ", ":": "ː", ":\\": "ˑ", "~": "\u0303", "_~": "\u0303", "=": "\u0329", "_=": "\u0329",
    "_h": "ʰ", "_j": "ʲ", "'": "ʲ", "_w": "ʷ", "_0": "\u0325", "`": "˞", "_": "\u0361", ".": ".", "-": "", " ": " ",
}  # fmt: skip
_ARPABET = {
    "AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "aʊ", "AX": "ə", "AXR": "ɚ", "AY": "aɪ", "B": "b", "CH": "tʃ",
    "D": "d", "DH": "ð", "DX": "ɾ", "EH": "ɛ", "ER": "ɝ", "EY": "eɪ", "F": "f", "G": "ɡ", "HH": "h", "IH": "ɪ",
    "IX": "ɨ", "IY": "i", "JH": "dʒ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "OW": "oʊ", "OY": "ɔɪ",
    "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "UH": "ʊ", "UW": "u", "V": "v", "W": "w", "Y": "j",
    "Z": "z", "ZH": "ʒ",
}  # fmt: skip
_UNSTRESSED = {"AH": "ə", "ER": "ɚ"}
_STRESSES = {"1": "ˈ", "2": "ˌ"}
_XSAMPA_SYMBOL = re.compile("|".join(map(re.escape, sorted(_XSAMPA, key=len, reverse=True))))
_ARPABET_SYMBOL = re.compile(r"([A-Z]+)([012]?)")


def to_ipa(phonemes: str, alphabet: str) -> str:
    """Convert phonemes of one of `ALPHABETS`.

    Raises:
        ValueError: they are too long, blank, or have a symbol that the alphabet lacks; the message names it.
    """
    if len(phonemes) > MAX_PHONEMES:
        raise ValueError(f"{len(phonemes)} characters; at most {MAX_PHONEMES} are allowed")
    found = ALPHABETS[alphabet](phonemes.strip())
    if not any(map(str.isalpha, found)):
        raise ValueError("no phonemes")
    return found


def _from_xsampa(phonemes: str) -> str:
    converted, at = [], 0
    while at < len(phonemes):
        symbol = _XSAMPA_SYMBOL.match(phonemes, at)
        if symbol is None:
            raise ValueError(f"{phonemes[at]!r} is not a symbol of X-SAMPA")
        converted.append(_XSAMPA[symbol[0]])
        at = symbol.end()
    return "".join(converted)


def _from_arpabet(phonemes: str) -> str:
    converted = []
    for word in phonemes.upper().split():
        symbol = _ARPABET_SYMBOL.fullmatch(word)
        if symbol is None or symbol[1] not in _ARPABET:
            raise ValueError(f"{word[:20]!r} is not a symbol of ARPABET")
        sound = _UNSTRESSED.get(symbol[1], "") if symbol[2] == "0" else ""
        converted.append(_STRESSES.get(symbol[2], "") + (sound or _ARPABET[symbol[1]]))
    return "".join(converted)


ALPHABETS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"ipa": str, "x-sampa": _from_xsampa, "cmu-arpabet": _from_arpabet}
)
