from __future__ import annotations

import pytest

from streaming_server.engines.onnx.clauses import clauses
from streaming_server.engines.onnx.english import EnglishPhonemes


@pytest.fixture(scope="module")
def english() -> EnglishPhonemes:
    return EnglishPhonemes()


def test_the_opening_clause_is_short_and_later_ones_are_not() -> None:
    phonemes = "wˈʌn tˈu θɹˈi, fˈɔɹ fˈIv, sˈɪks sˈɛvən ˈAt, nˈIn tˈɛn."
    assert clauses(phonemes, 150) == [phonemes]
    assert clauses(phonemes, 150, opening=20) == ["wˈʌn tˈu θɹˈi,", "fˈɔɹ fˈIv, sˈɪks sˈɛvən ˈAt, nˈIn tˈɛn."]
    assert clauses(phonemes, 150, opening=90) == [phonemes]
    assert clauses("a" * 400, 150) == ["a" * 150, "a" * 150, "a" * 100]
    assert all(len(part) <= 30 for part in clauses(phonemes, 30))
    assert " ".join(clauses(phonemes, 30)) == phonemes


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("Hello there.", "həlˈO ðˈɛɹ."),
        ("[word](/kˈæt/)", "wˈɜɹd"),  # misaki's markup has no meaning here
        ("!!!!!!!!", ""),
        ("😀", ""),
        ("…", ""),
    ],
)
def test_phonemes(english: EnglishPhonemes, text: str, phonemes: str) -> None:
    assert english(text).replace("(", "").startswith(phonemes)
    assert bool(english(text)) == bool(phonemes)


@pytest.mark.parametrize("unit", ["1", "1,2,", "aB", "$", "9:", "[a](/b/) ", "'"])
def test_no_text_is_too_odd_for_the_conversion(english: EnglishPhonemes, unit: str) -> None:
    text = unit * (300 // len(unit))
    assert len(english(text)) < 20 * len(text)
