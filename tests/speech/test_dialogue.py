"""Dialogues: tags, voices, splitting, and streaming a script through engines without dialogues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streaming_server.audio.encoders import PcmEncoder
from streaming_server.audio.pcm import to_int16
from streaming_server.components import create_service
from streaming_server.domain import Capability, SpeechRequest, Voice
from streaming_server.errors import EngineFailed, InvalidRequest, VoiceFileMissing
from streaming_server.settings import Settings
from streaming_server.speech.dialogue import PLAIN, Cutting, as_dialogue, script_of
from streaming_server.text import cut_by_words, pause_s
from tests.support.fakes import RATE_HZ, FakeEngine, Step, tone, voice

VOICES = [Voice(name, voice().path) for name in ("anna", "ben", "carl")]
TURN = bytes(2 * round(pause_s(".") * RATE_HZ))
"""The pause between two speakers."""


def said(text: str, cutting: Cutting | None = None) -> list[list[tuple[str, str]]]:
    script = script_of(text, VOICES, cutting or Cutting())
    return [[(turn.voice.name, turn.text) for turn in piece] for piece in script]


def test_each_speaker_has_the_voice_of_its_number() -> None:
    text = "[SPEAKER1] Who is there?\n[SPEAKER0]It is me.[SPEAKER2] And me!\n[SPEAKER1] Come in."
    assert said(text) == [
        [("ben", "Who is there?"), ("anna", "It is me."), ("carl", "And me!"), ("ben", "Come in.")],
    ]
    assert [turn.speaker for turn in script_of(text, VOICES, Cutting())[0]] == [1, 0, 2, 1]


@pytest.mark.parametrize("text", ["Plain words.", "[SPEAKER] x", "[speaker0] x", "[SPEAKERx] x", "SPEAKER0: x"])
def test_what_is_no_tag_is_spoken(text: str) -> None:
    assert said(text) == [[("anna", text)]]


@pytest.mark.parametrize(("most", "sizes"), [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (9, [5])])
def test_cut_by_speaker(most: int, sizes: list[int]) -> None:
    text = "".join(f"[SPEAKER{number % 2}] turn {number} " for number in range(5))
    assert [len(piece) for piece in said(text, Cutting("speaker", max_turns=most))] == sizes
    assert len(said("Plain words.", Cutting("speaker"))) == 1


def test_cut_by_words_keeps_the_speaker() -> None:
    text = "[SPEAKER0] One two three four five. [SPEAKER1] six"
    assert said(text, Cutting("word", max_words=2)) == [
        [("anna", "One two")],
        [("anna", "three four")],
        [("anna", "five.")],
        [("ben", "six")],
    ]


@pytest.mark.parametrize(
    ("text", "most", "pieces"),
    [
        ("One two three. Four five six seven! Eight nine", 4, ["One two three.", "Four five six seven!", "Eight nine"]),
        (
            "你好，世界。今天天气很好。Hello there, my friend.",
            7,
            ["你好，世界。", "今天天气很好。", "Hello there, my friend."],
        ),
        ("no end of a sentence at all here", 3, ["no end of", "a sentence at", "all here"]),
        ("  few   words ", 5, ["few   words"]),
        ("一二三四五", 2, ["一二", "三四", "五"]),
    ],
)
def test_words_are_cut_at_ends_of_sentences(text: str, most: int, pieces: list[str]) -> None:
    assert cut_by_words(text, most) == pieces


def test_cutting_loses_no_word() -> None:
    text = "Ein Satz. 中文句子，很长。 " * 800
    for most in (1, 2, 7, 50, 5000):
        assert "".join("".join(piece.split()) for piece in cut_by_words(text, most)) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[SPEAKER0]", r"no text after \[SPEAKER0\], turn 1"),
        ("[SPEAKER0] a [SPEAKER1] \n [SPEAKER0] b", r"no text after \[SPEAKER1\], turn 2"),
        ("[SPEAKER0][SPEAKER1] a", r"\[SPEAKER0\], turn 1"),
        ("Well, [SPEAKER0] a", "text before its first"),
        ("[SPEAKER0] a [SPEAKER3] b", r"\[SPEAKER3\], which has no voice; valid range: 0-2"),
        ("[SPEAKER" + "9" * 5000 + "] b", "which has no voice"),
        ("[SPEAKER99999999999999999999] b", "which has no voice"),
    ],
)
def test_a_dialogue_that_cannot_be_played_says_where_it_fails(text: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as caught:
        script_of(text, VOICES, Cutting(), "input")
    assert caught.value.field == "input"
    assert len(str(caught.value)) < 200


def test_the_requests_own_voice_leads_and_the_others_follow_in_order() -> None:
    request = SpeechRequest("[SPEAKER0] a [SPEAKER1] b [SPEAKER2] c", VOICES[1])
    assert [found.name for found in as_dialogue(request, VOICES).voices] == ["ben", "anna", "carl"]
    assert as_dialogue(replace(request, text="plain"), VOICES).script == ()


async def heard(engine: FakeEngine, request: SpeechRequest) -> bytes:
    service = create_service(Settings(), engine)
    await service.warm()
    received = b""
    async with service.open(request, PcmEncoder()) as stream:
        while piece := await stream.buffer.read(len(received)):
            received += piece
            assert service.slot.status().waiting == ()
    await service.aclose()
    return received


def by_voice(request: SpeechRequest) -> list[Step]:
    return [tone(0.1, {"anna": 200, "ben": 300, "carl": 400}[request.voice.name])]


@pytest.mark.anyio
async def test_an_engine_without_dialogues_plays_the_turns_in_one_stream() -> None:
    engine = FakeEngine(by_voice)
    text = "[SPEAKER0] a [SPEAKER2] b [SPEAKER0] c"
    request = SpeechRequest(text, VOICES[0], script=script_of(text, VOICES, Cutting()))
    pcm = await heard(engine, request)
    assert pcm == TURN.join(to_int16(tone(0.1, hz)).tobytes() for hz in (200, 400, 200))
    assert [(asked.text, asked.voice.name) for asked in engine.requests] == [
        ("a", "anna"),
        ("b", "carl"),
        ("c", "anna"),
    ]


@pytest.mark.anyio
async def test_a_thousand_turns_are_played() -> None:
    engine = FakeEngine(by_voice)
    text = "".join(f"[SPEAKER{number % 3}] {number}\n" for number in range(1000))
    request = SpeechRequest(text, VOICES[0], script=script_of(text, VOICES, Cutting("speaker")))
    assert len(await heard(engine, request)) == 1000 * 2400 * 2 + 999 * len(TURN)
    assert [asked.text for asked in engine.requests] == [str(number) for number in range(1000)]


@pytest.mark.anyio
async def test_an_engine_with_dialogues_takes_the_whole_and_plain_text_in_pieces_it_can_make() -> None:
    class Higher(FakeEngine):
        @property
        def info(self):  # type: ignore[no-untyped-def]
            return replace(super().info, capabilities=frozenset({Capability.DIALOGUE}))

    engine = Higher()
    text = "[SPEAKER0] a [SPEAKER1] b"
    script = script_of(text, VOICES, Cutting())
    await heard(engine, SpeechRequest(text, VOICES[0], script=script))
    await heard(engine, SpeechRequest("A word. " * 60, VOICES[0]))
    assert engine.requests[0].script == script
    assert [len(turn.text.split()) for (turn,) in engine.requests[1].script] == [50, 50, 20]
    assert engine.requests[1].script == script_of("A word. " * 60, VOICES, PLAIN)


@pytest.mark.anyio
async def test_a_voice_whose_file_is_gone_fails_before_anybody_speaks(tmp_path: Path) -> None:
    engine = FakeEngine(by_voice)
    voices = [VOICES[0], Voice("ben", tmp_path / "gone.wav")]
    text = "[SPEAKER0] a [SPEAKER1] b"
    with pytest.raises(VoiceFileMissing, match=r"gone\.wav"):
        await heard(engine, SpeechRequest(text, voices[0], script=script_of(text, voices, Cutting())))
    assert engine.requests == []


@pytest.mark.anyio
async def test_a_turn_that_fails_is_heard_after_those_before_it() -> None:
    samples = np.array([np.nan], np.float32)
    engine = FakeEngine(lambda request: [tone(0.1)] if request.text == "a" else [samples])
    service = create_service(Settings(), engine)
    await service.warm()
    text = "[SPEAKER0] a [SPEAKER1] b"
    request = SpeechRequest(text, VOICES[0], script=script_of(text, VOICES, Cutting()))
    expected = to_int16(tone(0.1)).tobytes() + TURN
    async with service.open(request, PcmEncoder()) as stream:
        received = b""
        while len(received) < len(expected):
            received += await stream.buffer.read(len(received))
        with pytest.raises(EngineFailed, match="not finite"):
            await stream.buffer.read(len(received))
    assert received == expected
    assert service.slot.status().holder is None
    await service.aclose()
