"""Pauses between texts that are synthesised in separate calls of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
import pytest

from streaming_server.audio.encoders import PcmEncoder
from streaming_server.components import create_service
from streaming_server.domain import AudioChunk, Capability, Mark, SpeechRequest, Voice
from streaming_server.settings import Settings
from streaming_server.speech.dialogue import PLAIN, perform, script_of
from streaming_server.speech.incremental import by_sentences
from streaming_server.speech.markup import joined, placed, with_pauses
from streaming_server.speech.ssml import parse
from tests.support.fakes import RATE_HZ, FakeEngine, tone, voice

SPEECH_S = 0.2
"""Duration of each call of the engine."""
OTHER = Voice("other", voice().path)


def request_of(text: str, speed: float = 1.0) -> SpeechRequest:
    if text.startswith("[SPEAKER"):
        return SpeechRequest(text, voice(), script=script_of(text, [voice(), OTHER], PLAIN), speed=speed)
    spans = placed(with_pauses([passage.span for passage in parse(f"<speak>{text}</speak>")]))
    return SpeechRequest(joined(spans), voice(), spans=tuple(spans), speed=speed)


def chunks_of(request: SpeechRequest, engine: FakeEngine) -> list[AudioChunk]:
    async def collect() -> list[AudioChunk]:
        async with aclosing(perform(engine, request)) as chunks:
            return [chunk async for chunk in chunks]

    return asyncio.run(collect())


def silence_s(request: SpeechRequest, *capabilities: Capability) -> float:
    """All silence that is not the engine's."""
    engine = FakeEngine(lambda _: [tone(SPEECH_S)], capabilities=frozenset(capabilities))
    size = sum(chunk.samples.size for chunk in chunks_of(request, engine))
    return size / RATE_HZ - SPEECH_S * len(engine.requests)


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("Stop <emphasis level='none'>it</emphasis> <prosody pitch='+1%'>now.</prosody> Then go.", 0.38),
        ("Stop <prosody pitch='+1%'>now</prosody>. Then go.", 0.38),
        ("Stop <prosody pitch='+1%'>now</prosody>, then go.", 0.12),
        ("Stop <prosody pitch='+1%'>now</prosody> and go.", 0),
        ("“Stop now.” <prosody pitch='+1%'>“Then go.”</prosody>", 0.38),
        ("现在停下。<prosody pitch='+1%'>然后走。</prosody>", 0.38),
        ("Ask Mr. <prosody pitch='+1%'>Smith</prosody> now.", 0),
        ("Some fruit, e.g. <prosody pitch='+1%'>apples</prosody> now.", 0),
        ("— <prosody pitch='+1%'>Then go.</prosody>", 0),
        ("Stop now. <break time='1s'/>Then go.", 1.0),
        ("Stop now. <break time='50ms'/>Then go.", 0.05),
        ("<p>Stop now.</p><p>Then go.</p>", 0.8),
        ("[SPEAKER0]Stop now. [SPEAKER1]Then go.", 0.38),
        ("[SPEAKER0]Stop now. [SPEAKER1]then go.", 0.38),
        ("[SPEAKER0]Stop now. [pause 1s] [SPEAKER1]Then go.", 1.0),
        ("[SPEAKER0]Stop now [SPEAKER1]then go", 0.38),
        ("[SPEAKER0]Stop now, [SPEAKER1]then go", 0.12),
        ("[SPEAKER0]Stop now [pause 1s] [SPEAKER1]then go", 1.0),
        ("[SPEAKER0]" + "A word. " * 60, 2 * 0.38),
        ("[SPEAKER0]" + "word " * 120, 0),
    ],
)
def test_texts_in_separate_calls_have_the_pause_of_their_punctuation(text: str, expected_s: float) -> None:
    assert silence_s(request_of(text)) == pytest.approx(expected_s, abs=1 / RATE_HZ)


def test_two_speakers_with_one_voice_are_two_turns() -> None:
    text = "[SPEAKER0]Stop now. [SPEAKER1]then go [SPEAKER0]on"
    request = SpeechRequest(text, voice(), script=script_of(text, [voice(), voice()], PLAIN))
    assert silence_s(request) == pytest.approx(2 * 0.38, abs=1 / RATE_HZ)


def test_a_pause_follows_the_speed_where_the_engine_does() -> None:
    turns = "[SPEAKER0]Stop now. [SPEAKER1]Then go."
    assert silence_s(request_of(turns, speed=2.0)) == pytest.approx(0.38)
    assert silence_s(request_of(turns, speed=2.0), Capability.SPEED) == pytest.approx(0.19)
    slow = "Stop now. <prosody rate='50%'>Then go.</prosody>"
    assert silence_s(request_of(slow), Capability.SPEED) == pytest.approx(0.76)


@pytest.mark.parametrize(("own_s", "added_s"), [(0.1, 0.38), (0.3, 0.2), (0.6, 0)])
def test_silence_that_the_engine_ends_with_is_part_of_the_pause(own_s: float, added_s: float) -> None:
    engine = FakeEngine(lambda _: [tone(0.2), np.zeros(round(own_s * RATE_HZ), np.float32)])
    chunks = chunks_of(request_of("[SPEAKER0]Stop now. [SPEAKER1]Then go."), engine)
    total_s = sum(chunk.samples.size for chunk in chunks) / RATE_HZ
    assert total_s - 2 * (0.2 + own_s) == pytest.approx(added_s, abs=0.001)


def test_words_after_a_pause_are_timed_behind_it() -> None:
    class Marking(FakeEngine):
        async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
            yield AudioChunk(tone(0.5), [Mark(0, 0.1)])

    chunks = chunks_of(request_of("Stop. <lang xml:lang='de'>Go.</lang>"), Marking())
    assert [mark.time_s for chunk in chunks for mark in chunk.marks] == pytest.approx([0.1, 0.5, 0.98, 1.38])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("Stop now. Then go.", 0.38),
        ("Stop now. [pause 1s] Then go.", 1.0),
        ("Stop now. [pause 50ms] Then go.", 0.05),
        ("Then go [pause 100ms]\nEnd now", 0.1),
        ("Stop.\n[pause 100ms]\nThen go", 0.1),
        ("First stop\nThen go.", 0.38),
        ("stop\n\nthen go.", 0.38),
    ],
)
async def test_segments_of_an_incremental_text_have_the_pauses_of_a_whole_one(text: str, expected_s: float) -> None:
    engine = FakeEngine(lambda _: [tone(SPEECH_S)])
    service = create_service(Settings(), engine)
    await service.warm()
    size = 0
    async with service.open(by_sentences(SpeechRequest(text, voice())), PcmEncoder()) as stream:
        while piece := await stream.buffer.read(size):
            size += len(piece)
        assert not any(passage.text.endswith("\n") for passage in stream.passages)
    await service.aclose()
    assert len(engine.requests) == 2
    assert size / 2 / RATE_HZ - 2 * SPEECH_S == pytest.approx(expected_s, abs=1 / RATE_HZ)
