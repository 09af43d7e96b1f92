"""SSML and inline pauses: what is parsed, what is refused with its place, and how it sounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import numpy as np
import pytest

from streaming_server.audio.prosody import ProsodyFilter
from streaming_server.domain import (
    AudioChunk,
    Capability,
    FloatSamples,
    Mark,
    Pronunciation,
    Span,
    SpeechRequest,
    Turn,
    Voice,
)
from streaming_server.errors import InvalidRequest
from streaming_server.speech.dialogue import perform
from streaming_server.speech.inline_tags import InlineTags, without_tags
from streaming_server.speech.markup import MAX_PAUSES_S, check_pauses, joined, placed, with_pauses
from streaming_server.speech.ssml import InvalidMarkup, parse
from streaming_server.speech.timeline import Passage
from tests.support.fakes import RATE_HZ, FakeEngine, tone, voice


def texts(markup: str) -> list[tuple[str, float]]:
    return [(passage.span.text, passage.span.pause_s) for passage in parse(f"<speak>{markup}</speak>")]


def sound(markup: str) -> Span:
    """Of the only span."""
    (passage,) = parse(f"<speak>{markup}</speak>")
    return passage.span


def performed(request: SpeechRequest, engine: FakeEngine) -> FloatSamples:
    async def collect() -> FloatSamples:
        async with aclosing(perform(engine, request)) as chunks:
            return np.concatenate([chunk.samples async for chunk in chunks])

    return asyncio.run(collect())


def engine_of(seconds: float = 0.5, *capabilities: Capability) -> FakeEngine:
    return FakeEngine(lambda _: [tone(seconds)], capabilities=frozenset(capabilities))


def spoken(engine: FakeEngine) -> list[str]:
    return [request.text for request in engine.requests]


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("One. Two.", [("One. Two.", 0)]),
        ('One<break time="500ms"/>two', [("One", 0.5), ("two", 0)]),
        ('One<break time="0.25s"/><break time="1s"/>two', [("One", 1.25), ("two", 0)]),
        ('One<break time="10s"/><break time="10s"/>two', [("One", 20), ("two", 0)]),
        ('<p>One.<break time="10s"/></p>Two', [("One.", 10.4), ("Two", 0)]),
        ('One<break strength="strong"/>two', [("One", 0.7), ("two", 0)]),
        ('<break time="1s"/>two', [("", 1), ("two", 0)]),
        ("<s>One</s><s>Two!</s>", [("One. Two!", 0)]),
        ("<p>One</p>Two", [("One. ", 0.4), ("Two", 0)]),
        ("<s>你好</s>再见", [("你好。再见", 0)]),
        ('A <sub alias="doctor">Dr.</sub> here', [("A doctor here", 0)]),
        ('<say-as interpret-as="characters">usb</say-as>', [("U S B", 0)]),
        ('<say-as interpret-as="digits">42</say-as>', [("4 2", 0)]),
        ('<say-as interpret-as="telephone">+1-800-555</say-as>', [("+ 1, 8 0 0, 5 5 5", 0)]),
        ('Press <say-as interpret-as="spell-out">a</say-as> now', [("Press A, now", 0)]),
        ('<say-as interpret-as="verbatim">ab-1a2 $5</say-as>', [("A B, 1 A, 2 dollar 5", 0)]),
        ('<say-as interpret-as="date">1 May</say-as>', [("1 May", 0)]),
        ('a <phoneme ph="x">tomato</phoneme> <mark name="m"/>b <lang xml:lang="de">ja</lang>', None),
        ("a &amp; b &lt; c", [("a & b < c", 0)]),
        ("<metadata>hidden</metadata>shown", [("shown", 0)]),
        ("<unknown>read</unknown>", [("read", 0)]),
        ("<s>Hello there.</s><s>Good morning.</s>", [("Hello there. Good morning.", 0)]),
        ('<p>He said "hi."</p>', [('He said "hi."', 0.4)]),
        ("\n  This is the story of\n  John.\n", [(" This is the story of John. ", 0)]),
        ('<say-as interpret-as="characters">at&amp;t</say-as>', [("A T & T", 0)]),
        ('<say-as interpret-as="digits">12<!-- c -->34</say-as>', [("1 2 3 4", 0)]),
        ('Is it (<say-as interpret-as="digits">12</say-as>), or not?', [("Is it (1 2), or not?", 0)]),
        ('<s>Hello.</s><s><sub alias="Kilometre">Km</sub>s.</s>', [("Hello. Kilometres.", 0)]),
        ('x<say-as interpret-as="digits">12</say-as><say-as interpret-as="digits">3</say-as>y', [("x 1 2 3 y", 0)]),
    ],
)
def test_text_and_pauses(markup: str, expected: list[tuple[str, float]] | None) -> None:
    assert texts(markup) == (expected or [("a tomato b ", 0), ("ja", 0)])


@pytest.mark.parametrize(
    ("markup", "text", "starts"),
    [
        ("One [pause 1s] two three.", "One  two three.", [0, 4]),
        ('Wait<break time="1s"/>now', "Wait now", [0, 5]),
        ("<p>First one.</p><p>Second.</p>", "First one. Second.", [0, 11]),
        ('你好<break time="1s"/>再见', "你好再见", [0, 2]),
        ("One[pause 10s][pause 10s]two", "One two", [0, 3, 4]),
        ('Wait<break time="1s"/>, now', "Wait, now", [0, 4]),
    ],
)
def test_spans_have_their_places_in_the_text_that_is_shown(markup: str, text: str, starts: list[int]) -> None:
    spans = placed(with_pauses([passage.span for passage in parse(f"<speak>{markup}</speak>")]))
    assert (joined(spans), [span.start for span in spans]) == (text, starts)


@pytest.mark.parametrize(
    "before",
    [
        "\n\t ",
        "\r\n<!-- a comment -->",
        *(f'<?xml version="1.0" encoding="{name}"?>' for name in ("ISO-8859-1", "utf-16")),
    ],
)
def test_a_document_begins_with_a_blank_or_a_declaration_of_any_encoding(before: str) -> None:
    (passage,) = parse(f"{before}<speak>Müller 你好</speak>")
    assert passage.span.text == "Müller 你好"


def test_prosody_and_emphasis_are_factors_that_multiply() -> None:
    assert sound('<prosody rate="slow" pitch="high" volume="+6dB">a</prosody>') == Span("a", 0, 0, None, 0.8, 1.15, 6)
    assert sound('<prosody rate="150%">a</prosody>').rate == 1.5
    assert sound('<prosody rate="-20%">a</prosody>').rate == pytest.approx(0.8)
    assert sound('<prosody pitch="+12st">a</prosody>').pitch == pytest.approx(2.0)
    assert sound('<prosody rate="2"><prosody rate="2"><prosody rate="2">a</prosody></prosody></prosody>').rate == 4
    assert sound('<emphasis level="strong">a</emphasis>').gain_db == 3
    assert [passage.voice for passage in parse('<speak>a<voice name="nova">b</voice>c</speak>')] == ["", "nova", ""]


@pytest.mark.parametrize(
    ("document", "line", "column", "problem"),
    [
        ("hello", 1, 1, "must begin with <speak>"),
        ("\n hello", 1, 1, "must begin with <speak>"),
        ("\n<?xml version='1.0'?><speak>a</speak>", 2, 1, "XML or text declaration not at start"),
        ("<speech>a</speech>", 1, 1, "the root element is speech"),
        ("<speak>\n a <b>\n</speak>", 3, 3, "mismatched tag"),
        ("<speak>\n  <break time='soon'/></speak>", 2, 3, "0-10 s"),
        ("<speak><break time='11s'/></speak>", 1, 8, "0-10 s"),
        ("<speak><break strength='very'/></speak>", 1, 8, "x-strong"),
        ("<speak><prosody rate='5'>a</prosody></speak>", 1, 8, "0.25-4"),
        ("<speak><prosody pitch='200Hz'>a</prosody></speak>", 1, 8, "semitones"),
        ("<speak><prosody volume='100'>a</prosody></speak>", 1, 8, "dB"),
        ("<speak><emphasis level='x'>a</emphasis></speak>", 1, 8, "moderate"),
        ("<speak><voice>a</voice></speak>", 1, 8, "attribute name"),
        ("<speak><sub>a</sub></speak>", 1, 8, "alias"),
        ("<speak><say-as>a</say-as></speak>", 1, 8, "interpret-as"),
        ("<speak><lang>a</lang></speak>", 1, 8, "xml:lang"),
        ("<speak xml:lang='?'>a</speak>", 1, 1, "BCP 47"),
        ("<speak><mark/></speak>", 1, 8, "attribute name"),
        ("<speak><phoneme>a</phoneme></speak>", 1, 8, "attribute ph"),
        ("<speak><phoneme ph=' '>a</phoneme></speak>", 1, 8, "no phonemes"),
        ("<speak><phoneme ph='a' alphabet='pinyin'>a</phoneme></speak>", 1, 8, "ipa, x-sampa, cmu-arpabet"),
        ("<speak><phoneme ph='a\u00e9' alphabet='x-sampa'>a</phoneme></speak>", 1, 8, "not a symbol of X-SAMPA"),
        ("<speak><phoneme ph='Q' alphabet='cmu-arpabet'>a</phoneme></speak>", 1, 8, "not a symbol of ARPABET"),
        (f"<speak><phoneme ph='{'a' * 201}'>a</phoneme></speak>", 1, 8, "at most 200"),
        ("<speak><phoneme ph='a'>a<break/></phoneme></speak>", 1, 25, "only text, not break"),
        ('<!DOCTYPE s [<!ENTITY a "aaaa">]>\n<speak>&a;</speak>', 1, 13, "not allowed"),
        ("<speak>" + "<s>" * 101, 1, 305, "100 deep"),
        ("<speak>&nbsp;</speak>", 1, 8, "entity"),
    ],
)
def test_what_is_not_valid_is_named_with_its_place(document: str, line: int, column: int, problem: str) -> None:
    with pytest.raises(InvalidMarkup, match=problem) as raised:
        parse(document, "input")
    assert str(raised.value).startswith(f"input is not valid SSML at line {line}, column {column}: ")
    assert raised.value.field == "input"


def test_pauses_are_bounded_in_all() -> None:
    with pytest.raises(InvalidRequest, match="at most 300 s"):
        parse("<speak>" + "a<break time='10s'/>" * 31 + "</speak>")
    with pytest.raises(InvalidRequest, match="at most 300 s"):
        check_pauses("[pause 10s]" * 31, "text")
    with pytest.raises(InvalidRequest, match="pause of 11 s"):
        check_pauses("[pause 11s]", "text")
    assert sum(span.pause_s for span in with_pauses([Span("[pause 99s]" * 40)])) == MAX_PAUSES_S


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One [pause 0.5s] two", [("One ", 0.5, 0), (" two", 0, 16)]),
        ("[PAUSE 250ms]two", [("", 0.25, 0), ("two", 0, 13)]),
        ("a [pause] b [pause 1 s] [pause -1s]", [("a [pause] b [pause 1 s] [pause -1s]", 0, 0)]),
    ],
)
def test_pauses_within_a_text(text: str, expected: list[tuple[str, float, int]]) -> None:
    found: Sequence[Span] = with_pauses([Span(text)])
    assert [(span.text, span.pause_s, span.start) for span in found] == expected


@pytest.mark.parametrize("pause", ["0.5s", "333ms", "1.0001s"])
def test_a_pause_is_exact_to_the_sample(pause: str) -> None:
    engine = engine_of()
    samples = performed(SpeechRequest(f"One. [pause {pause}] Two.", voice()), engine)
    seconds = float(pause[:-2]) / 1000 if pause.endswith("ms") else float(pause[:-1])
    expected = round(seconds * RATE_HZ)
    assert samples.size == RATE_HZ + expected
    (silent,) = np.nonzero(np.abs(np.concatenate([[1], samples, [1]])) == 0)
    assert np.count_nonzero(samples[RATE_HZ // 2 : RATE_HZ // 2 + expected]) == 0
    assert silent.size >= expected
    assert spoken(engine) == ["One. ", " Two."]


def test_only_a_pause_is_silence_and_a_plain_text_is_untouched() -> None:
    engine = engine_of()
    assert not performed(SpeechRequest("[pause 0.5s]", voice()), engine).any()
    assert not engine.requests
    plain = SpeechRequest("...", voice())
    assert np.array_equal(performed(plain, engine), tone(0.5))
    assert engine.requests == [plain]


def test_a_pause_keeps_its_length_where_speech_is_stretched_afterwards() -> None:
    request = SpeechRequest("a [pause 0.5s]", voice(), speed=2.0)
    assert performed(request, engine_of(0.5)).size == RATE_HZ // 2 + RATE_HZ
    assert performed(request, engine_of(0.5, Capability.SPEED)).size == RATE_HZ


def hertz(samples: FloatSamples) -> float:
    """The strongest frequency in the middle."""
    middle = samples[samples.size // 4 : samples.size * 3 // 4]
    return float(np.abs(np.fft.rfft(middle * np.hanning(middle.size))).argmax() * RATE_HZ / middle.size)


def test_rate_pitch_and_volume_are_heard() -> None:
    def spanned(**options: float) -> FloatSamples:
        request = SpeechRequest("a", voice(), spans=(Span("a", **options),))  # type: ignore[arg-type]
        return performed(request, engine_of(1.0))

    slow = spanned(rate=0.8)
    assert slow.size == pytest.approx(RATE_HZ / 0.8, rel=0.01)
    assert hertz(slow) == pytest.approx(220, rel=0.02)
    high = spanned(pitch=1.5)
    assert high.size == pytest.approx(RATE_HZ, rel=0.01)
    assert hertz(high) == pytest.approx(330, rel=0.02)
    quiet = spanned(gain_db=-6.0206)
    assert quiet.size == RATE_HZ
    assert np.abs(quiet).max() == pytest.approx(0.25, rel=0.01)
    loud, plain = spanned(gain_db=12.0), tone(1.0)
    assert 0.9 < np.abs(loud).max() < 1.0
    is_soft = np.abs(plain) < 0.7 / 10**0.6
    np.testing.assert_allclose(loud[is_soft], plain[is_soft] * 10**0.6, rtol=1e-5)
    levels = [np.abs(ProsodyFilter(RATE_HZ, 1, 1, gain_db).push(plain * 1.9)).mean() for gain_db in (0, 0.1, 1, 3, 12)]
    assert levels == sorted(levels)


@pytest.mark.parametrize(
    ("markup", "rate", "pitch"),
    [
        ('<prosody rate="400%" pitch="-50%">one two</prosody>', 4.0, 0.5),
        ('<prosody rate="25%" pitch="+12st">one two</prosody>', 0.25, 2.0),
        ('<prosody rate="4"><emphasis level="reduced">one two</emphasis></prosody>', 4.0, 1.0),
    ],
)
def test_rate_and_pitch_at_opposite_ends_keep_the_tempo_and_the_times_of_words(
    markup: str, rate: float, pitch: float
) -> None:
    class Marking(FakeEngine):
        async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
            yield AudioChunk(np.concatenate([tone(0.5, 440), tone(0.5)]), [Mark(4, 0.5)])

    async def collect() -> list[AudioChunk]:
        request = SpeechRequest("one two", voice(), spans=(sound(markup),))
        async with aclosing(perform(Marking(capabilities=frozenset()), request)) as chunks:
            return [chunk async for chunk in chunks]

    chunks = asyncio.run(collect())
    samples = np.concatenate([chunk.samples for chunk in chunks])
    assert samples.size == pytest.approx(RATE_HZ / rate, rel=0.01)
    (second_s,) = [mark.time_s for chunk in chunks for mark in chunk.marks if mark.character == 4]
    assert second_s == pytest.approx(0.5 / rate)
    quarter = samples.size // 4
    assert hertz(samples[: 2 * quarter]) == pytest.approx(440 * pitch, rel=0.05)
    assert hertz(samples[2 * quarter :]) == pytest.approx(220 * pitch, rel=0.05)


def test_each_span_has_its_voice_and_an_engine_with_speed_gets_the_rate() -> None:
    other = Voice("other", is_preset=True)
    engine = engine_of(0.1, Capability.SPEED)
    request = SpeechRequest("ab", voice(), spans=(Span("a", rate=2.0), Span("b", voice=other)), speed=1.5)
    assert performed(request, engine).size == 2 * RATE_HZ // 10
    assert [(asked.text, asked.voice, asked.speed) for asked in engine.requests] == [
        ("a", voice(), 3.0),
        ("b", other, 1.5),
    ]
    assert request.voices == [voice(), other]


def test_an_engine_for_dialogues_gets_each_span_as_a_script_and_scripts_without_pauses() -> None:
    engine = engine_of(0.1, Capability.DIALOGUE)
    performed(SpeechRequest("a [pause 1s] b", voice()), engine)
    assert [turn.text for request in engine.requests for piece in request.script for turn in piece] == ["a", "b"]
    engine.requests.clear()
    performed(SpeechRequest("x", voice(), script=((Turn("a [pause 1s] b", voice(), 0),),)), engine)
    assert [turn.text.split() for piece in engine.requests[0].script for turn in piece] == [["a", "b"]]


def test_words_are_timed_across_pauses() -> None:
    class Marking(FakeEngine):
        async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
            yield AudioChunk(tone(0.5), [Mark(0, 0.1)])

    async def collect() -> list[Mark]:
        async with aclosing(perform(Marking(), SpeechRequest("One [pause 1s]two", voice()))) as chunks:
            return [mark async for chunk in chunks for mark in chunk.marks]

    assert [(mark.character, round(mark.time_s, 6)) for mark in asyncio.run(collect())] == [
        (0, 0.1),
        (3, 0.5),
        (14, 1.6),
        (17, 2.0),
    ]


@pytest.mark.parametrize(
    ("alphabet", "phonemes"), [("ipa", "təˈmeɪtoʊ"), ("x-sampa", 't@"meItoU'), ("cmu-arpabet", "T AH0 M EY1 T OW0")]
)
def test_phonemes_belong_to_a_word(alphabet: str, phonemes: str) -> None:
    written = f"Say <phoneme alphabet='{alphabet}' ph='{phonemes}'> tomato </phoneme>, please"
    assert sound(written).text == "Say  tomato , please"
    (given,) = sound(written).pronunciations
    assert (given.start, given.end, given.ipa.replace("ˈ", "")) == (5, 11, "təmeɪtoʊ")


def test_an_engine_gets_languages_and_phonemes_with_the_text_of_each_span() -> None:
    engine = engine_of(0.1)
    document = (
        "<speak xml:lang='en'>a<break/><phoneme ph='x'>b</phoneme> <lang xml:lang='de'>[pause 1s] c</lang></speak>"
    )
    spans = with_pauses([passage.span for passage in parse(document)])
    performed(SpeechRequest("ab [pause 1s] c", voice(), spans=tuple(spans), language="fr"), engine)
    performed(SpeechRequest("ab", voice(), language="fr", pronunciations=(Pronunciation(1, 2, "y"),)), engine)
    asked = [(request.text, request.language, request.pronunciations) for request in engine.requests]
    assert asked == [
        ("a", "en", ()),
        ("b ", "en", (Pronunciation(0, 1, "x"),)),
        (" c", "de", ()),
        ("ab", "fr", (Pronunciation(1, 2, "y"),)),
    ]


def test_marks_are_reached_at_the_ends_of_spans_and_within_them() -> None:
    document = (
        "<speak><mark name='m'/>one<mark name='n'/><break time='1s'/><mark name='o'/>two <mark name='p'/>six</speak>"
    )
    passages = parse(document)

    async def collect() -> list[Mark]:
        text = "".join(passage.span.text for passage in passages)
        request = SpeechRequest(text, voice(), spans=tuple(passage.span for passage in passages))
        async with aclosing(perform(engine_of(0.7), request)) as chunks:
            return [mark async for chunk in chunks for mark in chunk.marks]

    found = Passage("onetwo six", 0.0, 2.4, asyncio.run(collect()))
    assert [(mark.name, round(mark.time_s, 6)) for mark in found.bookmarks] == [
        *(("m", 0.0), ("n", 0.7)),
        *(("o", 1.7), ("p", 2.1)),
    ]
    assert found.precision == "segment"
    assert found.times_s[7] == pytest.approx(2.1)


_PHONEME = '<phoneme alphabet="x-sampa" ph="&quot;x">d e</phoneme>'
TAGGED = f'a < b <break time="1.5s" /><break/>c<break strength="weak"/> {_PHONEME} <br> <breakfast> <phoneme ph="x">f'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_tags_within_a_text_are_read_however_they_arrive(size: int) -> None:
    tags = InlineTags()
    found = [piece for at in range(0, len(TAGGED), size) for piece in tags.push(TAGGED[at : at + size])]
    found += tags.flush()
    texts = [piece if isinstance(piece, str) else f"({piece.text}|{piece.ipa})" for piece in found]
    shown = 'a < b [pause 1.500s][pause 0.400s]c[pause 0.200s] (d e|ˈx) <br> <breakfast> <phoneme ph="x">f'
    assert "".join(texts) == shown
    plain, given = without_tags(TAGGED)
    assert [plain[each.start : each.end] for each in given] == ["d e"]
    assert without_tags("<" * 1000)[0] == "<" * 1000


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ('<break time="11s"/>', "0-10 s"),
        ('<break time=""/>', "0-10 s"),
        ('<break strength="very"/>', "x-strong"),
        ('<phoneme alphabet="x" ph="a">a</phoneme>', "cmu-arpabet"),
        ('<phoneme alphabet="x-sampa" ph="é">a</phoneme>', "X-SAMPA"),
    ],
)
def test_a_tag_that_is_not_valid_is_refused(tag: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as refused:
        without_tags(tag, "input")
    assert refused.value.field == "input"
