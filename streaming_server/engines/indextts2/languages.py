"""The languages of 2.5: their rows in its language embedding, and which of them a text is written in.

Rows follow Whisper's table of languages (Radford et al., 2022). Told apart by script alone: what Latin letters spell is
taken for English. This module does not know tokens or models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

COMMON = 105
"""The row of every language that was given none of its own."""

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
"""In this order: Japanese and Korean texts may hold Chinese characters."""


def language_of(text: str) -> str:
    """One of ``ROWS``, by the first script that the text has any letter of."""
    return next((language for language, script in SCRIPTS.items() if script.search(text)), "en")
