"""Text that is read out character by character: serial numbers, telephone numbers, abbreviations."""

from __future__ import annotations

import re
import unicodedata

_DIGITS = frozenset({"digits", "telephone"})
READ_OUT = _DIGITS | {"characters", "spell-out", "verbatim"}
"""Values of SSML's ``interpret-as`` whose content is read out character by character."""
_GROUP = re.compile(r"(?:[^\W_]|[+*#])+")
_SPOKEN_MARKS = frozenset("&@#%/*")
"""Punctuation that has a name in speech."""
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen"}
"""Names of signs that engines read behind the number that follows them."""
_ARTICLE = re.compile(r"\bA(?= \d)|(?:(?<=\d )|(?<=, )|^)A$")
"""A letter that engines take for the article."""


def read_out(text: str, interpretation: str) -> str:
    """Return the characters one by one, with a comma in place of punctuation.

    Engines read a hyphen between two digits as "to".

    Args:
        text: the content of the element.
        interpretation: one of `READ_OUT`; in numbers, a blank divides groups of digits too.
    """
    if interpretation in _DIGITS:
        return ", ".join(" ".join(group) for group in _GROUP.findall(text))
    groups: list[list[str]] = [[]]
    for character in text.upper():
        if unicodedata.category(character)[0] == "P" and character not in _SPOKEN_MARKS:
            groups.append([])
        elif not character.isspace():
            groups[-1].append(_CURRENCIES.get(character, character))
    return _ARTICLE.sub("A,", ", ".join(" ".join(group) for group in groups if group))
