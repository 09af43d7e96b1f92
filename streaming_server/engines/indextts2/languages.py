"""The languages of 2.5: their rows in the language embedding, and language detection.

Rows follow Whisper's table of languages (Radford et al., 2022). Detection uses the script only; text in Latin letters
counts as English.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

COMMON = 105
"""The row of every language without a row of its own."""

ROWS: Mapping[str, int] = {
    "en": 0, "zh": 1, "de": 2, "es": 3, "ru": 4, "ko": 5, "fr": 6, "ja": 7, "ar": 13, "yue": 99, "zh/en": 103,
    "common": COMMON,
}  # fmt: skip

SCRIPTS = {
    "ja": re.compile("[\u3040-\u30ff\uff66-\uff9f]"),
    "ko": re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]"),
    "zh": re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"),
    "ru": re.compile("[\u0400-\u04ff]"),
    "ar": re.compile("[\u0600-\u06ff]"),
}
"""Checked in this order, because Japanese and Korean texts can contain Chinese characters."""


def language_of(text: str) -> str:
    """Return the language of the first script in ``SCRIPTS`` that occurs in the text, else ``en``."""
    return next((language for language, script in SCRIPTS.items() if script.search(text)), "en")
