"""Incremental text: the slot between segments, turns, flush, end, cancellation and limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from streaming_server.audio.encoders import OggOpusEncoder, PcmEncoder
from streaming_server.audio.pcm import to_int16
from streaming_server.components import create_service
from streaming_server.domain import PronouncedText, Pronunciation, SpeechRequest, TextPieces, TextSignal, Turn
from streaming_server.engines.espeak.engine import EspeakEngine
from streaming_server.engines.espeak.voices import VOICES
from streaming_server.errors import EngineFailed, ForbiddenCharacter, InvalidRequest, QueueFull, TextTooLong
from streaming_server.segmentation import Segmenter
from streaming_server.settings import Settings
from streaming_server.speech.incremental import by_sentences, parts
from streaming_server.speech.service import SpeechService
from streaming_server.speech.stream import SpeechStream, StreamState
from streaming_server.text import pause_s
from tests.audio.test_ogg import pages_of
from tests.support.fakes import RATE_HZ, FakeEngine, Gate, Step, tone, voice

pytestmark = pytest.mark.anyio
TEXT = "When the fog lifted over the bay, every ship waved. It cost 3.14 in all! Dr. Low left. Then it was quiet"
SEGMENTS = ["When the fog lifted over the bay,", "every ship waved.", "It cost 3.14 in all!", "Dr. Low left."]
SEGMENTS += ["Then it was quiet"]


async def test_phonemes_stay_with_their_word_in_the_segments() -> None:
    writer = Writer()
    writer.write("One two. Say ", PronouncedText("Dr. tomato", "x"), " now. And ", PronouncedText("here", "y"), ".")
    writer.end()
    found = [part async for part in parts(writer.request(), 1000)]
    given = [(part.text, [part.text[each.start : each.end] for each in part.pronunciations]) for part in found]
    assert given == [("One two.", []), ("Say Dr. tomato now.", ["Dr. tomato"]), ("And here.", ["here"])]
    whole = by_sentences(SpeechRequest("a b. C", voice(), pronunciations=(Pronunciation(2, 3, "x"),)))
    assert [part.pronunciations async for part in parts(whole, 1000)] == [(Pronunciation(2, 3, "x"),), ()]


class Writer:
    """The writing side of an incremental text."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[str | PronouncedText | TextSignal | None] = asyncio.Queue()
        self.is_closed = False

    def write(self, *pieces: str | PronouncedText | TextSignal) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece)

    def end(self) -> None:
        self._pieces.put_nowait(None)

    @property
    def is_read(self) -> bool:
        """Whether every piece has been taken."""
        return self._pieces.empty()

    async def pieces(self) -> TextPieces:
        try:
            while (piece := await self._pieces.get()) is not None:
                yield piece
        finally:
            self.is_closed = True

    def request(self, **options: Any) -> SpeechRequest:
        return SpeechRequest("", voice(), pieces=self.pieces(), **options)


def audio_of(text: str) -> bytes:
    return to_int16(_tone(text)).tobytes()


def joined(audio: Callable[[str], bytes], texts: list[str], rate_hz: int = RATE_HZ) -> bytes:
    """The audio of segments one after another, with the pause that the end of each asks for."""
    pauses = [bytes(2 * round(pause_s(text) * rate_hz)) for text in texts]
    return b"".join(audio(text) + pause for text, pause in zip(texts, [*pauses[:-1], b""], strict=True))


def _tone(text: str) -> Any:
    return tone(len(text) / 100, 200.0 + len(text))


@asynccontextmanager
async def serving(
    script: Callable[[SpeechRequest], list[Step]] = lambda request: [_tone(request.text)], **settings: Any
) -> AsyncIterator[tuple[SpeechService, FakeEngine]]:
    engine = FakeEngine(script)
    service = create_service(Settings(**settings), engine)
    await service.warm()
    async with asyncio.timeout(180):
        yield service, engine
        await service.aclose()


async def read(stream: SpeechStream, size: int | None = None, received: bytes = b"") -> bytes:
    while (size is None or len(received) < size) and (piece := await stream.buffer.read(len(received))):
        received += piece
    return received


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def test_the_slot_is_free_while_the_next_words_are_awaited() -> None:
    writer = Writer()
    async with serving() as (service, engine), service.open(writer.request(), PcmEncoder()) as stream:
        assert stream.state is StreamState.AWAITING_TEXT
        writer.write("One is he", "re. T")
        received = await read(stream, len(audio_of("One is here.")))
        await until(lambda: stream.state is StreamState.AWAITING_TEXT)
        assert service.slot.status().holder is None
        async with service.open(SpeechRequest("another", voice()), PcmEncoder()) as other:
            assert await read(other) == audio_of("another")
        writer.write("wo is next.")
        writer.end()
        assert await read(stream, None, received) == joined(audio_of, ["One is here.", "Two is next."])
        assert [request.text for request in engine.requests] == ["One is here.", "another", "Two is next."]
        assert all(request.pieces is None for request in engine.requests)
        assert stream.stats.characters == len("One is here.Two is next.")
        await until(lambda: stream.state is StreamState.DRAINING)


async def test_the_holder_shows_the_current_segment() -> None:
    gate, writer = Gate(), Writer()
    async with serving(lambda _: [gate]) as (service, _), service.open(writer.request(), PcmEncoder()) as stream:
        writer.write("One is here. Two")
        await until(lambda: stream.state is StreamState.SYNTHESISING)
        holder = service.slot.status().holder
        assert holder is not None
        assert holder.text == "One is here."


async def test_sessions_take_turns_in_the_order_in_which_their_segments_arrive() -> None:
    gate, first, second = Gate(), Writer(), Writer()
    async with serving(lambda _: [gate, tone(0.01)]) as (service, engine):
        async with (
            service.open(first.request(), PcmEncoder()) as one,
            service.open(second.request(), PcmEncoder()) as two,
        ):
            first.write("A one. A two. A three.")
            first.end()
            await until(lambda: engine.running)
            second.write("B one. B two.")
            second.end()
            await until(lambda: two.state is StreamState.QUEUED)
            gate.open()
            await asyncio.gather(read(one), read(two))
        assert [request.text for request in engine.requests] == ["A one.", "B one.", "A two.", "B two.", "A three."]


async def test_a_full_queue_does_not_refuse_the_later_segments_of_an_admitted_text() -> None:
    gate, writer, late = Gate(), Writer(), Writer()

    def script(request: SpeechRequest) -> list[Step]:
        return [gate, tone(0.01)] if request.text == "hold" else [tone(0.01)]

    async with serving(script, max_queue=0) as (service, engine):
        async with service.open(writer.request(), PcmEncoder()) as stream:
            writer.write("One. T")
            await until(lambda: stream.state is StreamState.AWAITING_TEXT and engine.requests)
            async with service.open(SpeechRequest("hold", voice()), PcmEncoder()) as holder:
                await until(lambda: engine.running)
                writer.write("wo.", TextSignal.FLUSH)
                await until(lambda: stream.state is StreamState.QUEUED)
                async with service.open(late.request(), PcmEncoder()) as refused:
                    late.write("New.", TextSignal.FLUSH)
                    with pytest.raises(QueueFull):
                        await read(refused)
                gate.open()
                await read(holder)
            writer.end()
            await read(stream)
        assert [request.text for request in engine.requests] == ["One.", "hold", "Two."]


async def test_a_flush_synthesises_what_has_arrived_and_an_end_the_rest() -> None:
    writer = Writer()
    async with serving() as (service, engine), service.open(writer.request(), PcmEncoder()) as stream:
        writer.write("no full stop", TextSignal.FLUSH)
        received = await read(stream, len(audio_of("no full stop")))
        writer.write(TextSignal.FLUSH, " ", TextSignal.FLUSH, "the rest")
        await until(lambda: writer.is_read and stream.state is StreamState.AWAITING_TEXT)
        assert len(engine.requests) == 1
        writer.end()
        assert await read(stream, None, received) == audio_of("no full stop") + audio_of("the rest")


async def test_a_text_without_words_ends_without_audio() -> None:
    writer = Writer()
    async with serving() as (service, engine), service.open(writer.request(), PcmEncoder()) as stream:
        writer.write(" \n", TextSignal.FLUSH)
        writer.end()
        assert await read(stream) == b""
        assert engine.requests == []


@pytest.mark.parametrize("resumable", [False, True])
async def test_leaving_within_a_segment_frees_the_slot_and_closes_the_text(resumable: bool) -> None:
    gate, writer = Gate(), Writer()
    async with serving(lambda _: [tone(0.1), gate]) as (service, engine):
        async with service.open(writer.request(), PcmEncoder(), keep=resumable, resumable=resumable) as stream:
            stream.is_announced = True
            writer.write("One. Two. Three.")
            await stream.buffer.read(0)
            assert engine.running
        assert not engine.running
        assert service.slot.status().holder is None
        assert writer.is_closed
        assert len(engine.requests) == 1


async def test_leaving_between_segments_closes_the_text() -> None:
    writer = Writer()
    async with serving() as (service, _):
        async with service.open(writer.request(), PcmEncoder()) as stream:
            writer.write("One. Two")
            await stream.buffer.read(0)
            await until(lambda: stream.state is StreamState.AWAITING_TEXT)
        assert writer.is_closed
        assert service.streams == []


async def test_an_engine_error_comes_after_the_audio_before_it_and_ends_the_text() -> None:
    writer = Writer()

    def script(request: SpeechRequest) -> list[Step]:
        return [tone(0.1), ValueError("lost")] if request.text == "Two." else [tone(0.2)]

    async with serving(script) as (service, engine), service.open(writer.request(), PcmEncoder()) as stream:
        writer.write("One. Two. Three. F")
        expected = joined(lambda text: to_int16(tone(0.2 if text == "One." else 0.1)).tobytes(), ["One.", "Two."])
        received = await read(stream, len(expected))
        with pytest.raises(EngineFailed):
            await stream.buffer.read(len(received))
        assert received == expected
        assert service.slot.status().holder is None
        assert writer.is_closed
        assert len(engine.requests) == 2


@pytest.mark.parametrize(
    ("piece", "error", "sentence"),
    [
        ("x" * 90, TextTooLong, "105 characters; at most 100"),
        ("a\x00", ForbiddenCharacter, r"U\+0000 at position 16"),
    ],
)
async def test_a_text_that_passes_its_limits_fails_after_the_audio_so_far(
    piece: str, error: type[Exception], sentence: str
) -> None:
    writer = Writer()
    async with serving(max_text_characters=100) as (service, _), service.open(writer.request(), PcmEncoder()) as stream:
        writer.write("Here is one. Tw", piece)
        received = await read(stream, len(audio_of("Here is one.")))
        with pytest.raises(error, match=sentence):
            await stream.buffer.read(len(received))
        assert writer.is_closed


@pytest.mark.parametrize(("pauses", "total"), [("[pause 10s] One. ", 310), ("[pause 11s] One. ", 11)])
async def test_the_pauses_of_all_segments_have_the_limits_of_a_whole_text(pauses: str, total: int) -> None:
    writer = Writer()
    writer.write(pauses * 31)
    writer.end()
    with pytest.raises(InvalidRequest, match=f" {total} s; "):
        _ = [part async for part in parts(writer.request(), 1000)]


async def test_word_by_word_is_the_audio_of_the_segments_one_after_another() -> None:
    words = [word + " " for word in TEXT.split()]
    writer = Writer()
    async with serving() as (service, engine), service.open(writer.request(), PcmEncoder()) as stream:
        writer.write(*words)
        writer.end()
        assert await read(stream) == joined(audio_of, SEGMENTS)
        assert [request.text for request in engine.requests] == SEGMENTS


async def test_word_by_word_with_a_real_engine() -> None:
    writer, engine = Writer(), EspeakEngine()
    service = create_service(Settings(), engine)
    await service.warm()
    preset = VOICES[0]
    segmenter = Segmenter()
    segments = [part for word in TEXT.split() for part in segmenter.push(word + " ")] + segmenter.flush()
    audio = {}
    for segment in segments:
        async with service.open(SpeechRequest(segment, preset), PcmEncoder()) as stream:
            audio[segment] = await read(stream)
    async with service.open(SpeechRequest("", preset, pieces=writer.pieces()), PcmEncoder()) as stream:
        writer.write(*(word + " " for word in TEXT.split()))
        writer.end()
        assert await read(stream) == joined(audio.__getitem__, segments, engine.info.sample_rate_hz)
    await service.aclose()


async def test_all_segments_are_one_file_at_the_speed_that_was_asked_for() -> None:
    writer = Writer()
    request = writer.request(speed=2.0)
    async with serving(lambda _: [tone(1.0)]) as (service, _), service.open(request, OggOpusEncoder()) as stream:
        for sentence in ("One. ", "Two. ", "Three."):
            writer.write(sentence, TextSignal.FLUSH)
            await until(lambda: writer.is_read and stream.state is StreamState.AWAITING_TEXT)
        writer.end()
        pages = pages_of(await read(stream))
    assert sum(bool(kind & 2) for kind, _, _ in pages) == 1
    assert sum(bool(kind & 4) for kind, _, _ in pages) == 1
    assert pages[-1][1] == pytest.approx((1.5 + pause_s("One.")) * 48000, rel=0.02)


async def test_the_details_of_an_incremental_request_can_be_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    writer = Writer()
    async with serving() as (service, _), service.open(writer.request(verbose=True), PcmEncoder()) as stream:
        writer.end()
        await read(stream)
    assert "speech request" in caplog.messages


def test_an_incremental_text_is_the_only_text_of_a_request() -> None:
    with pytest.raises(ValueError, match="excludes a whole text"):
        SpeechRequest("whole", voice(), pieces=Writer().pieces())
    with pytest.raises(ValueError, match="a script"):
        SpeechRequest("", voice(), script=((Turn("a", voice()),),), pieces=Writer().pieces())
