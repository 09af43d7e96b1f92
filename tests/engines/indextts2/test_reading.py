"""Texts as 2.0 and 2.5 read them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiktoken

from streaming_server.engines.indextts2.languages import language_of
from streaming_server.engines.indextts2.reading import JapaneseWords, LanguageReader, PlainReader, pronounced
from streaming_server.engines.indextts2.vocabulary import SPECIAL_NAMES, read_vocabulary

VOCABULARY = "multilingual_zh_ja_yue_char_del.tiktoken"


@pytest.fixture(scope="module")
def tokens(folders: dict[str, Path]) -> tiktoken.Encoding:
    return read_vocabulary(folders["2.5"] / VOCABULARY)


@pytest.fixture(scope="module")
def reader(folders: dict[str, Path]) -> LanguageReader:
    return LanguageReader(folders["2.5"] / VOCABULARY)


def read(reader: LanguageReader, tokens: tiktoken.Encoding, text: str, longest: int = 120) -> list[str]:
    return [tokens.decode(segment.ids) for segment in reader.segments(text, longest)]


def test_there_are_as_many_special_tokens_as_published() -> None:
    assert len(SPECIAL_NAMES) == len(set(SPECIAL_NAMES)) == 1673
    assert 58_836 + len(SPECIAL_NAMES) == 60_509


@pytest.mark.parametrize(
    ("text", "language", "row", "read_as"),
    [
        ("Hello World", "en", 0, "<|en|> hello world"),
        ("你好 ABC", "zh", 1, "<|zh|> 你好 abc"),
        ("안녕하세요.", "ko", 5, "<|ko|> 안녕하세요."),
        ("Привет, Мир.", "ru", 4, "<|ru|> Привет, Мир."),
        ("مرحبا", "ar", 13, "<|ar|> مرحبا"),
    ],
)
def test_the_script_tells_the_language(
    reader: LanguageReader, tokens: tiktoken.Encoding, text: str, language: str, row: int, read_as: str
) -> None:
    assert language_of(text) == language
    [segment] = reader.segments(text, 120)
    assert segment.language == row
    assert tokens.decode(segment.ids) == read_as
    assert segment.ids[0] == tokens.encode_single_token(f"<|{language}|>")


@pytest.mark.parametrize(
    ("language", "row", "read_as"), [("es", 3, "HOLA"), ("fr", 6, "Hola"), ("common", 105, "Hola")]
)
def test_a_language_that_was_named_is_taken(
    folders: dict[str, Path], tokens: tiktoken.Encoding, language: str, row: int, read_as: str
) -> None:
    [segment] = LanguageReader(folders["2.5"] / VOCABULARY, language).segments("Hola", 120)
    assert segment.language == row
    assert tokens.decode(segment.ids) == f"<|{language}|> {read_as}"


def test_numbers_become_words(reader: LanguageReader, tokens: tiktoken.Encoding) -> None:
    assert read(reader, tokens, "I have 3 dogs") == ["<|en|> i have three dogs"]
    assert read(reader, tokens, "我有3只狗") == ["<|zh|> 我有三只狗"]
    assert read(reader, tokens, "У меня 3 собаки") == ["<|ru|> У меня 3 собаки"]


def test_start_and_stop_do_not_come_from_the_text(reader: LanguageReader) -> None:
    """``!`` and ``"`` have their ids: as in the public program they are left out."""
    [segment] = reader.segments('He said "stop!" to me', 120)
    assert not {0, 1} & set(segment.ids)


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("I <record|R IH0 K> it", "<|en|> i <|SPECIAL_TOKEN_1|>R IH0 K<|SPECIAL_TOKEN_1|> it"),
        ("银<行|HANG2>在这", "<|zh|> 银<|SPECIAL_TOKEN_2|>HANG2<|SPECIAL_TOKEN_2|>在这"),
    ],
)
def test_marks_tell_how_a_word_is_said(
    reader: LanguageReader, tokens: tiktoken.Encoding, text: str, read_as: str
) -> None:
    assert read(reader, tokens, text) == [read_as]
    [segment] = reader.segments(text, 120)
    special = tokens.encode_single_token("<|SPECIAL_TOKEN_1|>" if "record" in text else "<|SPECIAL_TOKEN_2|>")
    assert segment.ids.count(special) == 2


def test_kana_stand_for_themselves() -> None:
    assert pronounced("今日", "きょう", "ja") == "きょう"


def test_japanese_is_cut_into_words_where_it_can_be(
    reader: LanguageReader, tokens: tiktoken.Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JapaneseWords, "_load", lambda _: lambda text: [text[:2], text[2:]])
    assert read(reader, tokens, "今日はいい") == ["<|ja|> 今日 はいい"]


def test_without_a_segmenter_a_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "fugashi", None)
    words = JapaneseWords()
    assert [words.separate("今日はいい") for _ in range(2)] == ["今日はいい"] * 2
    assert caplog.text.count("run scripts/install japanese") == 1


def test_with_a_segmenter_there_are_words() -> None:
    pytest.importorskip("fugashi")
    assert JapaneseWords().separate(" 今日は天気がいい").split(" ")[:4] == ["", "今日", "は", "天気"]


def test_segments_stay_below_their_budget_and_lose_nothing(reader: LanguageReader, tokens: tiktoken.Encoding) -> None:
    for text in (
        "This is a sentence. And here is one more, which is longer; much longer than that. End.",
        "你好，世界。今天天气很好，我们去公园走走。" * 3,
        "a" * 300,
        "<one|W AH1 N> after the <other|AH1 DH ER0>, " * 9,
    ):
        for longest in (30, 60, 120):
            segments = reader.segments(text, longest)
            assert all(len(segment.ids) <= longest for segment in segments)
            said = "".join(tokens.decode(segment.ids).partition("> ")[2] for segment in segments)
            whole = "".join(read(reader, tokens, text, 10_000)).partition("> ")[2]
            assert said.replace(" ", "") == whole.replace(" ", "")


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "eggs\nmilk\nbread and butter\n" * 6),
        ("de", "Über allen Gipfeln\nist Ruh.\n\nIn allen Wipfeln \nspürest du\r\nkaum einen Hauch\n"),
        ("en", "word " * 20 + "<record|R IH0 K AO1 R D> end of it " * 3),
        ("en", " " * 300 + "one " * 40 + "\n" * 300),
    ],
)
def test_no_segment_ends_within_a_word(
    folders: dict[str, Path], tokens: tiktoken.Encoding, language: str, text: str
) -> None:
    reader = LanguageReader(folders["2.5"] / VOCABULARY, language)
    for longest in (30, 60):
        parts = [part.partition("> ")[2] for part in read(reader, tokens, text, longest)]
        assert len(parts) > 1
        assert " ".join(parts).split() == reader.prepare(text, language).split()


def test_segments_end_where_sentences_end(reader: LanguageReader, tokens: tiktoken.Encoding) -> None:
    assert read(reader, tokens, "One two three. Four five six, seven eight. Nine.", 24) == [
        "<|en|> one two three.", "<|en|> four five six,", "<|en|> seven eight. nine.",
    ]  # fmt: skip
    marked = "<aaa|" + "A" * 30 + "> b"
    assert len(reader.segments(marked, 10)) == 2  # a mark is not cut, whatever its length


def test_the_opening_is_short_where_a_mark_allows_it(folders: dict[str, Path], tokens: tiktoken.Encoding) -> None:
    text = "今天天气很好，我们去公园走走。这是一个语音合成系统。"
    for reader in (LanguageReader(folders["2.5"] / VOCABULARY), PlainReader(folders["2.0"] / "bpe.model")):
        [whole] = reader.segments(text, 120)
        opening, rest = reader.segments(text, 120, opening=30)
        assert len(opening.ids) <= 30
        assert len(opening.ids) + len(rest.ids) >= len(whole.ids)
        assert reader.segments("今" * 60, 120, opening=10) == reader.segments("今" * 60, 120)
        assert reader.segments("好。", 120, opening=30) == reader.segments("好。", 120)
