from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_server.segmentation import (
    MAX_SENTENCE_CHARACTERS,
    Cut,
    Segmenter,
    ends_line,
    is_certain_end,
    is_sentence,
    needs_space,
    sentences,
)

TOKENS = [*"abXY01 .!?…,;:—\n\"'()。，：你３؟۔।॥", "Dr.", "e.g.", "3.14", "word ", "word. ", "No. "]
TEXTS = st.lists(st.sampled_from(TOKENS), max_size=60).map("".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith met Mr. J. R. Jones at 3.14 p.m. on Jan. 5. Then he left.", None),
        ("No. He left. See no. 7 there.", ["No.", "He left.", "See no. 7 there."]),
        ('He said "Stop!" and ran. Why?', ['He said "Stop!" and ran.', "Why?"]),
        ("你好。世界！好吗？", ["你好。", "世界！", "好吗？"]),
        ("नमस्ते।आप कैसे हैं? ठीक॥ हाँ", ["नमस्ते।", "आप कैसे हैं?", "ठीक॥", "हाँ"]),
        ("کیا حال ہے؟ میں ٹھیک ہوں۔ شکریہ", ["کیا حال ہے؟", "میں ٹھیک ہوں۔", "شکریہ"]),
        ("a line\nof words\n\nNew paragraph", ["a line\nof words", "New paragraph"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str] | None) -> None:
    if expected is None:
        expected = ["Dr. Smith met Mr. J. R. Jones at 3.14 p.m. on Jan. 5.", "Then he left."]
    assert list(sentences(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Chapter One| \r\nIt was dark.", True),
        ("Milk and honey|\n- Bread", True),
        ("Milk and honey|\n", True),
        ("购物清单|\n牛奶", True),
        ("one two|\nthree", False),
        ("one two|\n\nthree", True),
        ("one| two", False),
        ("A line of a text that is wrapped at eighty columns or so, as I|\nThink it is", False),
        ("一行文字在四十个汉字之后换行，这样的一行文字不是一个句子，所以这里没有停顿而|\n继续", False),
        ("A line of a text that is wrapped at eighty columns or so, as I|\n \nThink it is", True),
    ],
)
def test_a_line_break_ends_a_sentence_unless_the_line_is_wrapped(text: str, expected: bool) -> None:
    assert ends_line(text.replace("|", ""), text.index("|")) is expected


def test_a_long_sentence_is_cut_at_clauses_and_words() -> None:
    text = "and then, " * 100
    parts = list(sentences(text))
    assert all(len(part) <= MAX_SENTENCE_CHARACTERS for part in parts)
    assert all(part.endswith(",") for part in parts)
    assert " ".join(parts) == text.strip()
    assert [len(part) for part in sentences("x" * 700)] == [300, 300, 100]


def push_all(text: str, size: int) -> tuple[list[str], Segmenter]:
    segmenter = Segmenter()
    found = [part for at in range(0, len(text), size) for part in segmenter.push(text[at : at + size])]
    return found, segmenter


def test_a_sentence_leaves_with_the_first_character_of_the_next() -> None:
    segmenter = Segmenter()
    assert segmenter.push("It costs 3.") == []
    assert segmenter.push("14 in all. ") == []
    assert segmenter.push("N") == ["It costs 3.14 in all."]
    assert segmenter.push("ext one.") == []
    assert segmenter.flush() == ["Next one."]
    assert segmenter.flush() == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("आज मौसम अच्छा है। हम", ["आज मौसम अच्छा है।"]),
        ("آج موسم اچھا ہے۔ ہم", ["آج موسم اچھا ہے۔"]),
        ("كيف حالك اليوم؟ أنا", ["كيف حالك اليوم؟"]),
        ("في صباح ذلك اليوم الجميل، خرج", ["في صباح ذلك اليوم الجميل،"]),
        ("好" * 24 + "，2024年", ["好" * 24 + "，"]),
        ("我们明天下午在学校门口见面，请大家务必准时到达，会议是3：30开始", []),
        ("明天下午我们大家都会在学校门口见面然后一起出发去１３：３０", []),
    ],
)
def test_the_first_segment_ends_at_the_marks_of_other_scripts(text: str, found: list[str]) -> None:
    assert push_all(text, 1)[0] == found


def test_a_long_sentence_is_not_cut_within_a_time() -> None:
    text = "好" * 200 + "，" + "好" * 80 + "３：３０" + "好" * 60
    assert [len(part) for part in sentences(text)] == [201, 144]


@pytest.mark.parametrize("growing", ["Dr. Smith is here", "at no. 7 there", "He owns 3.5 of it", "so-called e.g. this"])
def test_what_may_still_grow_is_held_back(growing: str) -> None:
    for end in range(1, len(growing)):
        assert Segmenter().push(growing[:end]) == []


def test_the_first_segment_may_be_a_clause_and_later_ones_are_sentences() -> None:
    text = (
        "When the fog finally lifted over the bay, every ship waved back, slowly. After that, all was quiet, again. End"
    )
    found, segmenter = push_all(text, 1)
    assert found == [
        "When the fog finally lifted over the bay,",
        "every ship waved back, slowly.",
        "After that, all was quiet, again.",
    ]
    assert segmenter.flush() == ["End"]
    assert Segmenter().push("Well, yes, no, maybe so") == []  # a clause of one word would sound detached


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (Cut.SENTENCE, ["When the fog finally lifted over the bay, every ship waved back.", "Well, yes, it did."]),
        (Cut.CLAUSE, ["When the fog finally lifted over the bay,", "every ship waved back.", "Well, yes, it did."]),
    ],
)
def test_a_segmenter_may_cut_at_sentences_or_at_all_clauses(cut: Cut, expected: list[str], size: int) -> None:
    text, segmenter = " ".join(expected), Segmenter(cut)
    found = [part for at in range(0, len(text), size) for part in segmenter.push(text[at : at + size])]
    assert found + segmenter.flush() == expected


def test_a_flush_ends_a_segment_wherever_it_stands() -> None:
    segmenter = Segmenter()
    assert segmenter.push("Hello") == []
    assert segmenter.flush() == ["Hello"]
    assert segmenter.push("there. Yes") == ["there."]


@pytest.mark.parametrize("before", ["word " * 58 + "at ", "x" * 295, ""])
def test_a_pause_is_not_divided(before: str) -> None:
    text = f"{before}[pause 0.5s] more words follow{'.' * (300 if not before else 1)}"
    segmenter = Segmenter()
    for found in ([*sentences(text)], [*segmenter.push(text), *segmenter.flush()]):
        assert sum("[pause 0.5s]" in part for part in found) == 1


@settings(max_examples=200)
@given(text=TEXTS, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20), cut=st.sampled_from(Cut))
def test_nothing_of_the_text_is_lost_however_it_arrives(text: str, sizes: list[int], cut: Cut) -> None:
    by_character, segmenter = push_all(text, 1)
    by_character += segmenter.flush()
    other = Segmenter(cut)
    found, at, turn = [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        found += other.push(text[at : at + size])
        at, turn = at + size, turn + 1
    found += other.flush()
    assert "".join("".join(found).split()) == "".join(text.split())
    assert "".join("".join(by_character).split()) == "".join(text.split())
    assert all(part == part.strip() and part for part in found)


def test_the_work_grows_with_the_text_alone() -> None:
    """However long the text before, a piece is examined together with the unfinished sentence only."""
    segmenter = Segmenter()
    pending = []
    for _ in range(2000):
        segmenter.push("word ")
        pending.append(len(segmenter._rest))
    assert max(pending) <= MAX_SENTENCE_CHARACTERS + len("word ")
    assert any(later < earlier for earlier, later in pairwise(pending))


@pytest.mark.parametrize("run", [".", "।"])
def test_a_long_run_of_marks_takes_linear_time(run: str) -> None:
    """In quadratic time these calls take more than half an hour."""
    text = f"a {run * 400_000}a"
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    assert is_sentence(text) is is_certain_end(text) is needs_space(text, "A") is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It was quiet. ", True),
        ("Really? ", True),
        ("Yes! ", True),
        ("He said \u201cenough.\u201d ", True),
        ("It was quiet.", False),  # a token may follow
        ("I met Dr. ", False),
        ("I met Prof. ", False),
        ("at approx. ", False),
        ("(on Sept. ", False),
        ("Wait\u2026 ", False),
        ("at 5 p.m. ", False),
        ("It cost 3. ", False),
        ("see fig. ", False),
        ("www.example.", False),
        ("a word ", False),
        ("आज मौसम अच्छा है। ", True),
        ("كيف حالك؟ ", True),
        ("آج موسم اچھا ہے۔ ", True),
    ],
)
def test_an_end_is_certain_whatever_follows(text: str, expected: bool) -> None:
    assert is_certain_end(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello there.", True),
        ("Yes.", False),
        ("\u4f60\u597d\u3002", True),
        ("I met Dr.", False),
        (" It is 3.", True),
        ("a b", False),
        ("आज मौसम अच्छा है।", True),
        ("كيف حالك؟", True),
        ("آج موسم اچھا ہے۔", True),
    ],
)
def test_a_piece_of_several_words_may_be_a_sentence(text: str, expected: bool) -> None:
    assert is_sentence(text) is expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("Hello.", "Yes.", True),
        ("3.", "14", False),
        ("example.", "com", False),
        ("Hello. ", "Yes", False),
        ("a", "B", False),
    ],
)
def test_sentences_that_touch_need_a_space(before: str, after: str, expected: bool) -> None:
    assert needs_space(before, after) is expected
