"""The streaming path without HTTP: data, timing, and cleanup after the reader has left."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streaming_server.audio.encoders import OggOpusEncoder, PcmEncoder
from streaming_server.audio.pcm import to_int16
from streaming_server.components import create_service
from streaming_server.domain import Generation, SpeechRequest
from streaming_server.errors import EngineFailed, EngineNotReady, ReaderTooSlow, VoiceFileMissing
from streaming_server.settings import Settings
from streaming_server.speech.buffers import ByteLimits
from streaming_server.speech.service import SpeechService
from streaming_server.speech.stream import SpeechStream
from tests.audio.test_ogg import pages_of
from tests.support.fakes import FakeEngine, Step, tone, voice

pytestmark = pytest.mark.anyio
REQUEST = SpeechRequest("hello", voice())


async def service_of(*script: Step, **settings: Any) -> SpeechService:
    service = create_service(Settings(**settings), FakeEngine(lambda _: list(script)))
    await service.warm()
    return service


async def read_all(service: SpeechService, request: SpeechRequest = REQUEST) -> bytes:
    async with service.open(request, PcmEncoder()) as stream:
        return await rest_of(stream)


async def rest_of(stream: SpeechStream, received: bytes = b"") -> bytes:
    while piece := await stream.buffer.read(len(received)):
        received += piece
    return received


async def test_the_reader_gets_every_sample_in_order() -> None:
    samples = tone(3.0)
    service = await service_of(*np.array_split(samples, 17))
    assert await read_all(service) == to_int16(samples).tobytes()
    await service.aclose()


async def test_the_first_audio_comes_while_the_engine_still_works() -> None:
    service = await service_of(tone(0.06), 5.0, tone(0.06))
    async with asyncio.timeout(180), service.open(REQUEST, OggOpusEncoder()) as stream:
        assert [granule for _, granule, _ in pages_of(await stream.buffer.read(0))] == [0, 0, 960]
        assert service.slot.status().holder is not None
    assert service.slot.status().holder is None
    await service.aclose()


async def test_what_an_encoder_holds_back_goes_out_when_nothing_has_for_a_while() -> None:
    # 13 packets fill the pages 1,1,1,1,2,2,2,2 and leave one on the page of four.
    service = await service_of(tone(0.26), 30.0)
    async with asyncio.timeout(180), service.open(REQUEST, OggOpusEncoder()) as stream:
        received = b""
        while not pages_of(received) or pages_of(received)[-1][1] < 13 * 960:
            received += await stream.buffer.read(len(received))
    await service.aclose()


async def test_the_slot_is_free_once_the_synthesis_is_over_though_nobody_reads() -> None:
    service = await service_of(tone(5.0))
    async with service.open(REQUEST, PcmEncoder()) as unread:
        async with asyncio.timeout(180):
            assert await read_all(service) == to_int16(tone(5.0)).tobytes()
            assert await unread.buffer.complete() == 5 * 24000 * 2
    await service.aclose()


@pytest.mark.parametrize(
    ("step", "error", "sentence"),
    [
        (ValueError("a secret path"), EngineFailed, "the speech engine failed"),
        (EngineFailed("out of memory"), EngineFailed, "out of memory"),
        (np.array([np.nan], np.float32), EngineFailed, "not finite"),
        (np.array([np.inf], np.float32), EngineFailed, "not finite"),
    ],
)
async def test_a_failure_reaches_the_reader_behind_the_audio_before_it(
    step: Step, error: type[Exception], sentence: str
) -> None:
    service = await service_of(tone(0.5), step)
    async with service.open(REQUEST, PcmEncoder()) as stream:
        received = b""
        while len(received) < 0.5 * 24000 * 2:
            received += await stream.buffer.read(len(received))
        with pytest.raises(error, match=sentence):
            await stream.buffer.read(len(received))
    assert received == to_int16(tone(0.5)).tobytes()
    assert service.slot.status().holder is None
    await service.aclose()


async def test_a_voice_whose_file_is_gone_fails_before_the_engine_is_asked(tmp_path: Path) -> None:
    service = await service_of(tone(0.1))
    with pytest.raises(VoiceFileMissing, match=r"gone\.wav"):
        await read_all(service, replace(REQUEST, voice=replace(voice(), path=tmp_path / "gone.wav")))
    assert isinstance(service.engine, FakeEngine)
    assert service.engine.requests == []
    await service.aclose()


async def test_no_request_exceeds_the_engine_s_number_of_codes() -> None:
    service = await service_of(tone(0.1))
    assert isinstance(service.engine, FakeEngine)
    service.engine.max_mel_tokens = 200
    for codes in (100, 600):
        await read_all(service, replace(REQUEST, generation=Generation(max_mel_tokens=codes)))
    assert [request.generation.max_mel_tokens for request in service.engine.requests] == [100, 200]
    await service.aclose()


async def test_leaving_ends_the_synthesis_and_frees_the_slot() -> None:
    service = await service_of(tone(0.1), 60.0)
    async with asyncio.timeout(180):
        async with service.open(REQUEST, PcmEncoder()) as stream:
            await stream.buffer.read(0)
        assert isinstance(service.engine, FakeEngine)
        assert service.engine.running == 0
        assert service.slot.status().holder is None
    await service.aclose()


async def test_a_stream_that_holds_too_much_is_aborted_and_the_next_one_works() -> None:
    service = await service_of(*[tone(1.0)] * 60, unsent_total_mb=4)
    aborted = asyncio.Event()
    async with asyncio.timeout(180), service.open(REQUEST, PcmEncoder()) as stream:
        stream.buffer.on_abort.add(aborted.set)
        await aborted.wait()
        with pytest.raises(ReaderTooSlow, match="behind"):
            await stream.buffer.read(0)
        assert stream.buffer.unsent_bytes == 0
        while service.slot.status().holder is not None:
            await asyncio.sleep(0)
    await service.aclose()


async def test_the_stream_that_holds_most_goes_when_the_total_is_reached() -> None:
    service = await service_of(*[tone(1.0)] * 30)
    service.budget.limits = ByteLimits(unsent_stream=10 * 2**20, unsent_total=2 * 2**20, kept=0)
    async with asyncio.timeout(180), service.open(REQUEST, PcmEncoder()) as hoarder:
        await hoarder.buffer.complete()
        # It alone fits; a second one that is read does too, until the two pass the total.
        async with service.open(REQUEST, PcmEncoder()) as modest:
            await modest.buffer.complete()
        with pytest.raises(ReaderTooSlow, match="its limit"):
            await hoarder.buffer.read(0)
    await service.aclose()


async def test_an_engine_that_is_not_ready_refuses() -> None:
    service = create_service(Settings(), FakeEngine(warming=[ValueError("no weights")]))
    assert service.state == "loading"
    with pytest.raises(EngineNotReady):
        await read_all(service)
    with pytest.raises(ValueError, match="no weights"):
        await service.warm()
    assert service.state == "failed"
    await service.aclose()


async def test_a_stream_that_is_ahead_waits_for_one_that_has_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    service = await service_of(tone(60.0))
    ten_seconds_bytes = 40000  # at 32 kbit/s
    async with asyncio.timeout(180), service.open(REQUEST, OggOpusEncoder()) as early:
        while early.buffer.size < ten_seconds_bytes:
            await asyncio.sleep(0.001)
        async with service.open(REQUEST, OggOpusEncoder()) as late:
            while late.buffer.size < ten_seconds_bytes:
                await asyncio.sleep(0.001)
            assert early.buffer.size < 1.4 * ten_seconds_bytes
    await service.aclose()
