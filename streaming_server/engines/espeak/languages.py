"""Which language of espeak-ng speaks which part of a text, by its script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

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
}
_DEFAULT = "en-us"
_KANA = re.compile("[぀-ヿ]")


def runs(text: str) -> Iterator[tuple[str, str]]:
    """Cut a text into ``(language, part)``; the parts joined are the text.

    Digits, punctuation and spaces belong to what stands before them, at the start to what follows. A text with kana
    is Japanese, so its Han characters are too.
    """
    han = "ja" if _KANA.search(text) else "cmn"
    current: str | None = None
    start = 0
    languages = {character: _language(character) for character in set(text)}
    for position, character in enumerate(text):
        language = languages[character]
        if language is None:
            continue
        if language == "cmn":
            language = han
        if current is not None and language != current:
            yield current, text[start:position]
            start = position
        current = language
    if start < len(text):
        yield current or _DEFAULT, text[start:]


def _language(character: str) -> str | None:
    if not character.isalpha():
        return None
    if character.isascii():
        return _BY_SCRIPT["LATIN"]
    name = unicodedata.name(character, "")
    script = name.removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ", 1)[0].split("-", 1)[0]
    return _BY_SCRIPT.get(script)
