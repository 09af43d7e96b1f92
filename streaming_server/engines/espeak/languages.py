"""Which language of espeak-ng speaks which part of a text, by its script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from streaming_server.engines.chinese_numbers import UNIT

_BY_SCRIPT = {
    "CJK": "cmn",
    "BOPOMOFO": "cmn",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "LATIN": "en-us",
    "CYRILLIC": "ru",
    "GREEK": "el",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "THAI": "th",
    "BENGALI": "bn",
    "MYANMAR": "my",
    "ETHIOPIC": "am",
    "ARMENIAN": "hy",
    "CHEROKEE": "chr",
    "GUJARATI": "gu",
    "GEORGIAN": "ka",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "ORIYA": "or",
    "GURMUKHI": "pa",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
}
"""By script, the language that it is taken for; of several, the one with the most speakers."""
DEFAULT = "en-us"
UNKNOWN = "und"
"""Stands for the language of letters of any other script."""
_SYMBOLS = frozenset({"IDEOGRAPHIC", "MASU", "ROMAN", "TURNED"})
"""First words of the names of letters that are used as symbols within any script."""
_WITH_UNITS = frozenset({"cmn", None})
_DICTIONARY = re.compile(r"^dictionary\s+(\w+)", re.MULTILINE)
_KANA = re.compile("[぀-ヿ]")


_SCRIPTS = {
    **dict.fromkeys(("ba", "be", "bg", "cv", "kk", "ky", "mk", "nog", "ru", "sr", "tt", "uk"), ("CYRILLIC",)),
    **dict.fromkeys(("el", "grc"), ("GREEK",)),
    **dict.fromkeys(("ar", "fa", "sd", "ug", "ur"), ("ARABIC",)),
    **dict.fromkeys(("hi", "kok", "mr", "ne"), ("DEVANAGARI",)),
    **dict.fromkeys(("cmn", "hak", "yue"), ("CJK", "BOPOMOFO")),
    **dict.fromkeys(("as", "bn", "bpy"), ("BENGALI",)),
    **dict.fromkeys(("my", "shn"), ("MYANMAR",)),
    **dict.fromkeys(("am", "ti"), ("ETHIOPIC",)),
    **dict.fromkeys(("hy", "hyw"), ("ARMENIAN",)),
    "chr": ("CHEROKEE",),
    "gu": ("GUJARATI",),
    "he": ("HEBREW",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ka": ("GEORGIAN",),
    "kn": ("KANNADA",),
    "ko": ("HANGUL",),
    "ml": ("MALAYALAM",),
    "or": ("ORIYA",),
    "pa": ("GURMUKHI",),
    "si": ("SINHALA",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "th": ("THAI",),
}
"""By language, the scripts that it is written in; any other language has the Latin script."""
ALIASES = {"zh": "cmn", "zh-yue": "yue", "iw": "he", "no": "nb", "in": "id"}
"""Other tags of languages."""


def find_languages(data: Path) -> list[str]:
    """Return the names of the languages in espeak-ng's data folder that have a dictionary, in lower case."""
    found = []
    for path in (data / "lang").rglob("*"):
        if path.is_file() and "-x-" not in path.name and "Latn" not in path.name:
            named = _DICTIONARY.search(path.read_text(encoding="utf-8"))
            dictionary = named[1] if named else path.name.partition("-")[0]
            if (data / f"{dictionary}_dict").is_file():
                found.append(path.name.lower())
    return sorted(found)


def runs(text: str, named: str = "") -> Iterator[tuple[str, str]]:
    """Cut a text into ``(language, part)``; the parts joined are the text. The language may be `UNKNOWN`.

    A ``named`` language, an espeak-ng voice, reads the scripts that it is written in.

    Digits, punctuation and spaces belong to what stands before them, at the start to what follows; so do units behind
    numbers in Mandarin. A text with kana is Japanese, so its Han characters are too.
    """
    current: str | None = None
    start = unit_end = 0
    languages = _by_character(text, named)
    units = {unit.start(): unit.end() for unit in UNIT.finditer(text)} if "cmn" in languages.values() else {}
    for position, character in enumerate(text):
        unit_end = units.get(position, unit_end)
        language = languages[character]
        if language is None or (position < unit_end and current in _WITH_UNITS):
            continue
        if current is not None and language != current:
            yield current, text[start:position]
            start = position
        current = language
    if start < len(text):
        yield current or named or DEFAULT, text[start:]


def languages_of(text: str, named: str = "") -> set[str]:
    """The languages of `runs`, in a fraction of its time."""
    return {language for language in _by_character(text, named).values() if language} or {named or DEFAULT}


def _by_character(text: str, named: str) -> dict[str, str | None]:
    scripts = _BY_SCRIPT
    if named:
        scripts = {**scripts, **dict.fromkeys(_SCRIPTS.get(named.partition("-")[0], ("LATIN",)), named)}
    elif _KANA.search(text):
        scripts = {**scripts, "CJK": "ja", "BOPOMOFO": "ja"}
    return {character: _language(character, scripts) for character in set(text)}


def _language(character: str, scripts: Mapping[str, str]) -> str | None:
    if not character.isalpha():
        return None
    if character.isascii():
        return scripts["LATIN"]
    name = unicodedata.name(character, "")
    script = name.removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ", 1)[0].split("-", 1)[0]
    if script in scripts:
        return scripts[script]
    # ª, µ, ℓ and 𝐀 are letters in another form, and modifiers such as ʰ stand with those of any script.
    is_symbol = script in _SYMBOLS or unicodedata.category(character) == "Lm"
    return None if is_symbol or unicodedata.normalize("NFKC", character) != character else UNKNOWN
