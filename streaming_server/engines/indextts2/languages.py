"""The languages of 2.5 and their rows in its language embedding, in the order of Whisper's table.

This module does not know how a language is told from a text.
"""

from __future__ import annotations

COMMON = 105
"""Stands for every language that the model was given no row for."""

ROWS = {
    "en": 0, "zh": 1, "de": 2, "es": 3, "ru": 4, "ko": 5, "fr": 6, "ja": 7, "ar": 13, "yue": 99, "zh/en": 103,
    "common": COMMON,
}  # fmt: skip
