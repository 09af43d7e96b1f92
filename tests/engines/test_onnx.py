from __future__ import annotations

import pytest

from streaming_server.domain import Pronunciation
from streaming_server.engines.onnx.alignment import phoneme_words, spans_of_words
from streaming_server.engines.onnx.clauses import clauses, ended
from streaming_server.engines.onnx.english import EnglishPhonemes
from streaming_server.engines.pronunciations import converted, in_misaki_alphabet
from streaming_server.speech.spelling import read_out


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


@pytest.mark.parametrize(
    ("text", "is_ended"),
    [
        ("We met at five p.m.| She left.", True),
        ("Chapter One|\nIt was dark.", True),
        ("one two|\nthree", False),
        ("Ask Mr.| Smith", False),
        ("Is it?|\nYes", False),
        ("…|\nYes", False),
    ],
)
def test_a_sentence_whose_phonemes_have_no_mark_gets_a_full_stop(
    english: EnglishPhonemes, text: str, is_ended: bool
) -> None:
    end = text.index("|")
    phonemes = english(text[:end])
    assert ended(phonemes, text.replace("|", ""), 0, end) == phonemes + "." * is_ended


@pytest.mark.parametrize(
    ("text", "ipa", "phonemes"),
    [
        ("Ask Nguyen's team.", "wɪn", "ˈæsk wˈɪnz tˈim."),
        ("The Nguyens are here.", "wɪn", "ðə wˈɪnz ɑɹ hˈɪɹ."),
        ("Nguyen’s", "tɪk", "tˈɪks"),
        ("Nguyen's", "tɪʃ", "tˈɪʃᵻz"),
        ("Nguyen says", "wɪn", "wˈɪn sˈɛz"),
    ],
)
def test_an_ending_belongs_to_the_word_with_given_phonemes(
    english: EnglishPhonemes, text: str, ipa: str, phonemes: str
) -> None:
    at = text.index("Nguyen")
    given = [Pronunciation(at, at + 6, ipa)]
    found = converted(text, given, english, lambda ipa: in_misaki_alphabet(ipa, "en-us"), is_english=True)
    assert found == phonemes


@pytest.mark.parametrize("unit", ["1", "1,2,", "aB", "$", "9:", "[a](/b/) ", "'"])
def test_no_text_is_too_odd_for_the_conversion(english: EnglishPhonemes, unit: str) -> None:
    text = unit * (300 // len(unit))
    assert len(english(text)) < 20 * len(text)


def unstressed(phonemes: str) -> str:
    return phonemes.translate(dict.fromkeys(map(ord, "ˈˌ")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("state-of-the-art-technology-driven", ["driven"]),
        ("https://docs.example.com/getting-started/installation", ["docs", "getting", "started", "installation"]),
        ("responsibilities—notwithstanding—matter", ["responsibilities", "notwithstanding", "matter"]),
        ("mother-in-law/father-in-law/grandparents", ["grandparents"]),
        ("it's-what-we-wanted-and-they've-got", ["they've"]),
    ],
)
def test_a_long_word_is_divided_after_its_punctuation(english: EnglishPhonemes, text: str, words: list[str]) -> None:
    phonemes = unstressed(english(text))
    assert [word for word in words if unstressed(english(word)) not in phonemes] == []


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("re\u0301sume\u0301", "r\u00e9sum\u00e9"),
        ("cof\u00adfee", "coffee"),
        ("in\u200bside", "inside"),
        ("in\u2060side", "inside"),
        ("\u22125 \u00b0C", "-5 \u00b0C"),
        ("5 \u2212 3", "5 minus 3"),
        ("20\u2103", "20 \u00b0C"),
        ("\u2116 5", "No. 5"),
        ("x \u2264 5", "x at most 5"),
        ("x\u22655", "x at least 5"),
        ("x\u00b2", "x squared"),
        ("3rd\u20135th grade", "3rd to 5th grade"),
        ("1990s-2000s", "1990s to 2000s"),
        ("20 000 units, 1 250 000", "20,000 units, 1,250,000"),
        ("\u20ac20\u202f500", "\u20ac20,500"),
        ("100 \u20ac, 3.50\u00a3 and 1 000 $.", "\u20ac100, \u00a33.50 and $1,000."),
    ],
)
def test_characters_that_look_alike_sound_alike(english: EnglishPhonemes, text: str, plain: str) -> None:
    assert english(text) == english(plain)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("If x \u2264 5 stop", ["If", "x", "\u2264", "\u2264", "5", "stop"]),
        ("It is \u22125 \u00b0C outside", ["It", "is", "\u22125", "\u22125", "\u00b0C", "\u00b0C", "outside"]),
        ("Room \u2116 5 is free", ["Room", "\u2116", "5", "is", "free"]),
        ("The re\u0301sume\u0301 in\u200bside", ["The", "re\u0301sume\u0301", "in\u200bside"]),
        ("About 20 000 units", ["About", "20", "000", "units"]),
        ("Tom & Jerry left", ["Tom", "&", "Jerry", "left"]),
    ],
)
def test_each_spoken_word_belongs_to_its_characters(english: EnglishPhonemes, text: str, words: list[str]) -> None:
    spans = spans_of_words(text, len(phoneme_words(english(text))), english)
    assert [text[slice(*span)] for span in spans] == words


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("N B A", "ˈɛn bˈi ˈA"),
        ("A B C", "ˈA bˈi sˈi"),
        ("A T-shirt", "ɐ tˈiʃˌɜɹt"),
        ("A U.S. official", "ɐ jˌuˈɛs əfˈɪʃᵊl"),
        ("THIS IS A TEST", "ðˈɪs ˈɪz ɐ tˈɛst"),
    ],
)
def test_a_letter_is_no_article(english: EnglishPhonemes, text: str, phonemes: str) -> None:
    assert english(text) == phonemes


@pytest.mark.parametrize("text", ["call 555 123 456", "rooms 20 100", "in 2024 000"])
def test_blanks_divide_other_numbers(english: EnglishPhonemes, text: str) -> None:
    assert "θˈWzᵊnd" not in english(text)


@pytest.mark.parametrize(
    ("interpretation", "text", "phonemes"),
    [
        ("telephone", "555-1234", "fˈIv fˈIv fˈIv, wˈʌn tˈu θɹˈi fˈɔɹ"),
        ("telephone", "+1-800", "plˈʌs wˈʌn, ˈAt zˈɪɹO zˈɪɹO"),
        ("digits", "12-34", "wˈʌn tˈu, θɹˈi fˈɔɹ"),
        ("spell-out", "A1", "ˈA, wˈʌn"),
        ("characters", "5$3", "fˈIv dˈɑləɹ θɹˈi"),
    ],
)
def test_characters_are_read_out(english: EnglishPhonemes, interpretation: str, text: str, phonemes: str) -> None:
    assert english(read_out(text, interpretation)) == phonemes
