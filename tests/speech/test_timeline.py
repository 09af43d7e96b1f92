"""When words are said: marks of the engine, equal shares without them, subtitles."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from streaming_server.audio.encoders import PcmEncoder
from streaming_server.components import create_service
from streaming_server.domain import AudioChunk, Mark, SpeechRequest
from streaming_server.settings import Settings
from streaming_server.speech.captions import cues, srt, vtt
from streaming_server.speech.incremental import by_sentences
from streaming_server.speech.timeline import Passage, precision_of
from tests.support.fakes import FakeEngine, tone, voice

pytestmark = pytest.mark.anyio


def words(passage: Passage) -> list[tuple[str, float, float]]:
    return [(word.text, round(word.start_s, 3), round(word.end_s, 3)) for word in passage.words()]


def test_without_marks_the_characters_share_the_time() -> None:
    passage = Passage("One two.", 1.0, 1.8)
    assert passage.precision == "segment"
    assert words(passage) == [("One", 1.0, 1.3), ("two.", 1.4, 1.8)]


def test_marks_are_exact_and_what_lies_between_is_shared() -> None:
    passage = Passage("One two six", 1.0, 3.0, [Mark(4, 0.6), Mark(7, 0.8), Mark(8, 1.2)])
    assert passage.precision == "engine"
    assert words(passage) == [("One", 1.0, 1.45), ("two", 1.6, 1.8), ("six", 2.2, 3.0)]


def test_times_rise_and_stay_within_the_passage_whatever_the_marks() -> None:
    passage = Passage("One two six", 1.0, 2.0, [Mark(4, 0.9), Mark(8, 0.2), Mark(30, 9.0), Mark(9, -1.0)])
    times_s = passage.times_s.tolist()
    assert times_s == sorted(times_s)
    assert (times_s[0], times_s[-1]) == (1.0, 2.0)
    assert len(times_s) == len("One two six") + 1


def test_the_lowest_precision_counts() -> None:
    measured, shared = Passage("a", 0, 1, [Mark(0, 0.0)]), Passage("a", 0, 1)
    assert (precision_of([measured]), precision_of([measured, shared])) == ("engine", "segment")


class MarkingEngine(FakeEngine):
    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        async for chunk in super().stream(request):
            yield AudioChunk(chunk.samples, [Mark(request.text.rfind(" ") + 1, 0.4)])


class GuessingEngine(FakeEngine):
    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        async for chunk in super().stream(request):
            yield AudioChunk(chunk.samples, [Mark(0, 0.1, is_measured=False)])


async def test_times_that_an_engine_estimates_are_not_called_measured() -> None:
    service = create_service(Settings(), GuessingEngine(lambda _: [tone(1.0)]))
    await service.warm()
    async with service.open(SpeechRequest("One two", voice()), PcmEncoder()) as stream:
        (passage,) = [passage async for _, passage in stream.buffer.timed() if passage]
    await service.aclose()
    assert passage.precision == "segment"


@pytest.mark.parametrize("speed", [1.0, 2.0])
async def test_passages_come_with_the_bytes_that_they_end_with(speed: float) -> None:
    service = create_service(Settings(), MarkingEngine(lambda _: [tone(1.0)]))
    await service.warm()
    request = by_sentences(SpeechRequest("One two. Six ten", voice(), speed=speed))
    found: list[tuple[int, Passage]] = []
    position = 0
    async with service.open(request, PcmEncoder()) as stream:
        while True:
            piece, passage = await stream.buffer.read_timed(position)
            if not piece and passage is None:
                break
            position += len(piece)
            found += [(position, passage)] if passage else []
    await service.aclose()
    (end, one), (_, two) = found
    assert end == pytest.approx(48000 / speed, abs=0.15 * 48000)  # a change of tempo holds its end back
    assert position == pytest.approx(2.38 / speed * 48000, rel=0.01)
    assert words(one) == [("One", 0.0, round(0.3 / speed, 3)), ("two.", round(0.4 / speed, 3), round(1.0 / speed, 3))]
    assert (two.text, round(two.start_s * speed, 2), round(two.words()[1].start_s * speed, 2)) == (
        "Six ten",
        1.38,
        1.78,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The list:\n1. First item\n2. Second item", ["The list:", "1. First item", "2. Second item"]),
        (
            'He shouted "Stop!" and left. See No. 5 for details.',
            ['He shouted "Stop!" and left.', "See No. 5 for details."],
        ),
        ("Meet me on Sat. 3 May. Wait… what was that?", ["Meet me on Sat. 3 May.", "Wait… what was that?"]),
        ("Yes. It is\nhere. Milk\nBread", ["Yes. It is here.", "Milk", "Bread"]),
        (
            "On the evening of the first day we went to see our old friend\nSmith. He was not at home.",
            ["On the evening of the first day we went to see our old friend Smith.", "He was not at home."],
        ),
        ("Yes. No. Maybe. Okay.", ["Yes. No.", "Maybe. Okay."]),
        ("你好。世界！ आज मौसम।हम", ["你好。", "世界！", "आज मौसम।हम"]),
        (" ", []),
    ],
)
def test_subtitles_end_where_the_sentences_of_the_whole_text_do(text: str, expected: list[str]) -> None:
    assert [cue.text for cue in cues([Passage(text, 0.0, 10.0)])] == expected


def test_subtitles_are_sentences_cut_where_they_are_long() -> None:
    long = " ".join(["Word"] * 30)
    shown = list(cues([Passage(f"It is here. {long}", 0.0, 10.0)]))
    assert [cue.text for cue in shown] == ["It is here.", " ".join(["Word"] * 17), " ".join(["Word"] * 13)]
    assert shown[0].start_s == 0
    assert shown[-1].end_s == 10.0
    passages = [Passage("A < B & C.", 0.0, 1.5), Passage("End", 3661.0, 3661.25)]
    assert srt(passages) == ("1\n00:00:00,000 --> 00:00:01,500\nA < B & C.\n\n2\n01:01:01,000 --> 01:01:01,250\nEnd\n")
    assert vtt(passages) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nA &lt; B &amp; C.\n\n01:01:01.000 --> 01:01:01.250\nEnd\n"
    )
