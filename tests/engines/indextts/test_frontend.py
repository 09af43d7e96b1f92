"""Normalisation, tokenisation and segmentation."""

from __future__ import annotations

import json
import re
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_server.engines.indextts.checkpoint import TEXT_MODEL
from streaming_server.engines.indextts.frontend import Frontend, TextNormalizer, split
from tests.engines.indextts.parity import DATA

CASES = json.loads((DATA / "segments.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def frontend(checkpoint: Path) -> Frontend:
    return Frontend(checkpoint / TEXT_MODEL)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['tokens'])} tokens, at most {case['max']}")
def test_segments_are_the_published_ones(case: dict[str, Any]) -> None:
    assert split(case["tokens"], case["max"]) == case["out"]


@given(st.lists(st.sampled_from(["a", "▁b", ".", "▁.", "。", "？", ",", "-", "!"])), st.integers(3, 30))
def test_segments_lose_nothing_and_keep_the_bound(tokens: list[str], longest: int) -> None:
    segments = split(tokens, longest)
    assert list(chain.from_iterable(segments)) == tokens
    assert all(0 < len(segment) <= longest for segment in segments)
    assert all(len(a) + len(b) > longest for a, b in pairwise(segments))


def test_a_sentence_ends_at_full_width_marks_too() -> None:
    assert split(["你", "好", "吗", "？", "很", "好", "的", "。"], 4) == [
        ["你", "好", "吗", "？"],
        ["很", "好", "的", "。"],
    ]


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("今天是2024年3月5日。", "今天是二零二四年三月五日."),
        ("温度-3℃，比例3:2！", "温度负三摄氏度,比例三比二!"),
        ("他说：“好……”", "他说,'好......'"),
        ("It costs $12.50.", "It costs twelve point five dollars."),
        ("他姓xuan4。", "他姓 XVAN4 ."),
        ("ju1 lü4 qu4 nu3", "JV1   LV4   QV4   NU3"),
        ("zhong4要", "ZHONG4 要"),
        ("A4 纸", "A四 纸"),
        ("mp3 x5", "mp three x five"),
        ("", ""),
    ],
)
def test_numbers_marks_and_pinyin(frontend: Frontend, text: str, normalised: str) -> None:
    assert frontend.normalise(text).split() == normalised.split()


def test_tokens_are_upper_case_words_and_single_characters(frontend: Frontend) -> None:
    tokens = frontend.tokens("hello你好world")
    assert "".join(tokens) == "▁HELLO▁你▁好▁WORLD"
    assert {"你", "▁你"} & set(tokens)
    assert frontend.tokens("") == []


def test_segments_are_ids_of_the_vocabulary(frontend: Frontend) -> None:
    segments = frontend.segments("你好，世界。" * 10, 20)
    assert len(segments) > 1
    assert all(len(ids) <= 20 for ids in segments)
    assert all(isinstance(token, int) and token > 2 for ids in segments for token in ids)
    assert frontend.segments("   ", 20) == []


@pytest.mark.parametrize(
    "text",
    [
        "Hello.\n\nNext paragraph.",
        "Hello \nthere",
        "Hello   there",
        "Room #1",
        "See [1].",
        "5€",
        "*1",
        "[SPEAKER0] Hello",
    ],
)
def test_what_the_normaliser_fails_at_stays_as_it_is_written(text: str) -> None:
    normalizer = TextNormalizer()
    said = normalizer.normalise(text, "en")
    assert all(word in said for word in re.findall("[a-z]+", text))
    assert normalizer.normalise("Room #1 has 2 doors.", "en").split()[-2:] == ["two", "doors."]
