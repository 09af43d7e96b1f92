"""Cutting texts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_server.text import cut_by_words, pieces


@given(st.text("ab1 .,;。，你\n!?$", max_size=300), st.integers(1, 40))
def test_pieces_are_bounded_and_joined_the_text(text: str, limit: int) -> None:
    cut = list(pieces(text, limit))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= limit for piece in cut)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("One two. Three four five.", ["One two.", " Three four five."]),
        ("Costs 3.14 dollars, then more", ["Costs 3.14 dollars,", " then more"]),
        ("on the 5th of March 2024 it was", ["on the 5th of ", "March 2024 it was"]),
        ("今天是2024年3月5日我们去公园走走看看再回来吧好", ["今天是2024年3月5日我们去公园走走看", "看再回来吧好"]),
        ("1" * 25, ["1" * 20, "1" * 5]),
    ],
)
def test_a_piece_ends_where_it_does_least_harm(text: str, cut: list[str]) -> None:
    assert list(pieces(text, 20)) == cut


@pytest.mark.parametrize("text", ["a" + "." * 19_000, "." * 19_000 + "a", "a. " * 5000, ".a" * 9500, "_." * 5000])
def test_words_are_cut_at_sentences_in_any_text(text: str) -> None:
    cut = cut_by_words(text, 10)
    assert re.sub(r"\s", "", "".join(cut)) == re.sub(r"\s", "", text)


def test_a_sentence_ends_before_a_closing_quote() -> None:
    assert cut_by_words('He said "Stop." Then he went', 5) == ['He said "Stop."', "Then he went"]
    assert cut_by_words("One two_. Three", 2) == ["One two_.", "Three"]
    assert cut_by_words("एक दो। तीन चार", 3) == ["एक दो।", "तीन चार"]
    assert cut_by_words("你好[pause 0.5s]再见", 2) == ["你好[pause 0.5s]", "再见"]
    assert cut_by_words("One two[Pause 0.5s] three four", 2) == ["One two[Pause 0.5s]", "three four"]
