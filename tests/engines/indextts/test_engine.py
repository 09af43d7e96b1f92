"""The engine from request to audio, on a tiny checkpoint."""

from __future__ import annotations

import asyncio
import threading
import time
import wave
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streaming_server.domain import (
    AudioChunk,
    Capability,
    FloatSamples,
    Generation,
    Granularity,
    SpeechRequest,
    Voice,
)
from streaming_server.engines.base import Engine
from streaming_server.engines.content_cache import FileDigests
from streaming_server.engines.indextts import stream
from streaming_server.engines.indextts.checkpoint import Checkpoint
from streaming_server.engines.indextts.engine import IndexTTSEngine
from streaming_server.engines.indextts.frontend import TextNormalizer
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.indextts.stream import (
    Audio,
    SegmentAudio,
    Synthesiser,
    window_sizes,
    without_long_silence,
)
from streaming_server.engines.indextts.voices import AnalysedVoice, VoiceCache
from streaming_server.engines.threads import Waiting
from streaming_server.engines.torch.decoding import Decoder
from streaming_server.engines.torch.options import Precision
from streaming_server.engines.torch.pieces import Job
from streaming_server.engines.torch.vocoding import VocoderThread
from streaming_server.errors import EngineNotReady, EngineUnavailable, VoiceFileMissing, VoiceUnreadable
from tests.support.engines import SharedEngines
from tests.support.server import eventually

TEXT = "你好, 世界. Hello world! 今天天气很好。"


def write_voice(path: Path, seconds: float = 1.5, seed: int = 0, rate_hz: int = 22_050) -> Path:
    noise = np.random.default_rng(seed).standard_normal(int(seconds * rate_hz)) * 3000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(noise.astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> SpeechRequest:
    path = write_voice(tmp_path_factory.mktemp("voices") / "v.wav")
    generation = Generation(seed=3, max_mel_tokens=60, max_text_tokens_per_sentence=14, num_beams=2)
    return SpeechRequest(TEXT, Voice("v", path), generation)


def create(checkpoint: Path, precision: Precision = "fp32") -> IndexTTSEngine:
    return IndexTTSEngine(model_dir=checkpoint, device="cpu", precision=precision)


ENGINES = SharedEngines(create)


@pytest.fixture(autouse=True, scope="module")
def engines() -> Iterator[None]:
    yield
    ENGINES.close()


def with_engine(
    checkpoint: Path, use: Callable[[IndexTTSEngine], Awaitable[Any]], precision: Precision = "fp32"
) -> Any:
    return ENGINES.use(use, checkpoint, precision)


def samples_of(audio: Audio) -> FloatSamples:
    pieces = []
    for piece in audio:
        if isinstance(piece, np.ndarray):
            pieces.append(piece)
        elif isinstance(piece, Waiting):
            time.sleep(0.001)  # the vocoder's thread needs the interpreter
    return np.concatenate(pieces)


def waiting_for(event: threading.Event) -> Job[torch.Tensor]:
    """A job that keeps the vocoder's thread busy."""
    assert event.wait(180)
    yield from ()
    return torch.empty(0)


async def spoken(engine: Engine, request: SpeechRequest) -> list[FloatSamples]:
    async with aclosing(engine.stream(request)) as chunks:
        return [chunk.samples async for chunk in chunks]


def test_a_request_becomes_audio(checkpoint: Path, request_: SpeechRequest) -> None:
    chunks = with_engine(checkpoint, lambda engine: spoken(engine, request_))
    audio = np.concatenate(chunks)
    assert audio.dtype == np.float32
    assert len(audio) > 24_000
    assert 0.01 < np.abs(audio).max() <= 1.0
    assert len(chunks[0]) == 4 * 1024  # 171 ms, so that sound starts early
    assert all(len(chunk) for chunk in chunks)


def test_the_stream_is_the_model_vocoded_whole(checkpoint: Path, request_: SpeechRequest) -> None:
    """Except at the joins, the audio equals that of separate segments."""

    async def both(engine: IndexTTSEngine) -> tuple[FloatSamples, FloatSamples]:
        one_beam = replace(request_.generation, num_beams=1)
        by_sentence = replace(request_, granularity=Granularity.SENTENCE, generation=one_beam)
        return np.concatenate(await spoken(engine, request_)), np.concatenate(await spoken(engine, by_sentence))

    by_token, by_sentence = with_engine(checkpoint, both)
    np.testing.assert_allclose(by_token, by_sentence, atol=1e-4)


@pytest.mark.parametrize("granularity", Granularity)
def test_a_seed_gives_the_same_audio_again(checkpoint: Path, request_: SpeechRequest, granularity: Granularity) -> None:
    async def thrice(engine: IndexTTSEngine) -> list[FloatSamples]:
        request = replace(request_, granularity=granularity)
        other = replace(request, generation=replace(request.generation, seed=4))
        return [np.concatenate(await spoken(engine, r)) for r in (request, request, other)]

    first, again, other = with_engine(checkpoint, thrice)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other[: len(first)])


def test_without_a_seed_no_two_readings_are_alike(checkpoint: Path, request_: SpeechRequest) -> None:
    async def twice(engine: IndexTTSEngine) -> list[FloatSamples]:
        request = replace(request_, generation=replace(request_.generation, seed=None))
        return [np.concatenate(await spoken(engine, request)) for _ in range(2)]

    one, other = with_engine(checkpoint, twice)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_sentences_in_buckets_sound_as_in_sequence(
    checkpoint: Path, request_: SpeechRequest, num_beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    create = Decoder.__init__

    def counting(self: Decoder, gpt: Any, count: int, *args: int) -> None:
        rows.append(count)
        create(self, gpt, count, *args)

    monkeypatch.setattr(Decoder, "__init__", counting)

    async def both(engine: IndexTTSEngine) -> list[FloatSamples]:
        generation = replace(request_.generation, num_beams=num_beams)
        request = replace(request_, granularity=Granularity.SENTENCE, generation=generation)
        rows.clear()
        return [np.concatenate(await spoken(engine, replace(request, sentence_batch=batch))) for batch in (1, 2)]

    alone, together = with_engine(checkpoint, both)
    np.testing.assert_allclose(alone, together, atol=1e-4)
    # A sentence of one beam takes the decoder whose steps are recorded.
    assert set(rows) == ({2} if num_beams == 1 else {2, 4})


def test_the_info_tells_the_truth(checkpoint: Path) -> None:
    engine = IndexTTSEngine(model_dir=checkpoint, device="cpu", precision="bf16")
    info = engine.info
    assert (info.name, info.model_version, info.sample_rate_hz) == ("indextts", "1.5.0", 24_000)
    assert (info.device, info.is_fp16, info.use_cuda_kernel) == ("cpu", False, False)
    assert info.max_mel_tokens == 200
    assert Path(info.config_path) == checkpoint / "config.yaml"
    assert Path(info.model_dir) == checkpoint
    assert Capability.TOKEN_STREAMING in info.capabilities
    assert Capability.EMOTION_CONTROL not in info.capabilities
    asyncio.run(engine.aclose())


def test_half_precision_speaks(checkpoint: Path, request_: SpeechRequest) -> None:
    audio = np.concatenate(with_engine(checkpoint, lambda engine: spoken(engine, request_), precision="bf16"))
    assert len(audio) > 24_000
    assert np.isfinite(audio).all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"device": "cpu", "precision": "fp16"}, "fp16 requires a GPU"),
        ({"device": "cpu", "look_ahead": 0}, "look-ahead"),
        pytest.param(
            {"device": "cuda"},
            "torch finds none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA"),
        ),
        ({"device": "cpu", "model_dir": Path("nowhere")}, "config.yaml is missing"),
    ],
)
def test_an_engine_that_cannot_start_says_why(checkpoint: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EngineUnavailable, match=sentence):
        IndexTTSEngine(**({"model_dir": checkpoint} | settings))


def test_an_engine_that_is_not_warm_says_so(checkpoint: Path, request_: SpeechRequest) -> None:
    engine = IndexTTSEngine(model_dir=checkpoint, device="cpu")
    with pytest.raises(EngineNotReady):
        asyncio.run(spoken(engine, request_))


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, VoiceFileMissing), (b"no audio", VoiceUnreadable), ("short", VoiceUnreadable)],
    ids=str,
)
def test_a_voice_that_cannot_be_heard_is_the_callers_to_know(
    checkpoint: Path, request_: SpeechRequest, tmp_path: Path, content: bytes | str | None, error: type[Exception]
) -> None:
    path = tmp_path / "other.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "short":
        write_voice(path, seconds=0.02)

    async def use(engine: IndexTTSEngine) -> None:
        with pytest.raises(error, match=r"other\.wav"):
            await spoken(engine, replace(request_, voice=Voice("other", path)))
        assert await spoken(engine, request_)  # the engine has taken no harm

    with_engine(checkpoint, use)


def test_others_play_on_while_a_text_is_prepared(
    checkpoint: Path, request_: SpeechRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    step = Decoder.step

    def stepping(self: Decoder) -> bool:
        done.append("step")
        return step(self)

    def words(_: TextNormalizer, text: str, language: str) -> str:
        if text.startswith("1.2年"):
            done.append("piece")
        return text

    monkeypatch.setattr(Decoder, "step", stepping)
    monkeypatch.setattr(TextNormalizer, "_words", words)

    async def use(engine: IndexTTSEngine) -> None:
        async def prepare() -> None:
            async with aclosing(engine.stream(replace(request_, text="1.2年" * 4000))) as chunks:
                await anext(chunks)

        playing = replace(request_, text=TEXT * 20)
        async with aclosing(engine.stream(playing)) as chunks:
            await anext(chunks)
            preparing = asyncio.create_task(prepare())
            while done.count("piece") < 10:
                await anext(chunks)
            preparing.cancel()
            await asyncio.wait([preparing])

    with_engine(checkpoint, use)
    pieces = [index for index, what in enumerate(done) if what == "piece"]
    assert all("step" in done[one:other] for one, other in pairwise(pieces))


def test_blank_text_is_no_audio(checkpoint: Path, request_: SpeechRequest) -> None:
    assert with_engine(checkpoint, lambda engine: spoken(engine, replace(request_, text=" "))) == []


@contextmanager
def counted(
    monkeypatch: pytest.MonkeyPatch, opened: threading.Event | None = None, vocoder: VocoderThread | None = None
) -> Iterator[list[None]]:
    """An item for each code that was chosen.

    With an event, the 300th code waits for it, and the 200th for the vocoder: before the 300th there is audio.
    """
    chosen: list[None] = []
    draw = Decoder.draw

    def counting(self: Decoder, rows: int, ranked: int | None) -> None:
        chosen.append(None)
        if vocoder is not None and len(chosen) == 200:
            vocoder._executor.submit(int).result()
        if opened is not None and len(chosen) == 300:
            assert opened.wait(180)
        draw(self, rows, ranked)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "draw", counting)
        yield chosen


def vocoder_of(engine: Any) -> VocoderThread:
    vocoder: VocoderThread = engine._loaded._synthesiser.thread
    return vocoder


async def leave_at_first(chunks: AsyncGenerator[AudioChunk, None], opened: threading.Event) -> None:
    """Close a stream after its first chunk, and set the event once closing has begun."""
    await anext(chunks)
    closing = asyncio.create_task(chunks.aclose())
    await asyncio.sleep(0)
    opened.set()
    await closing


def test_closing_a_stream_stops_the_decoding_at_once(
    checkpoint: Path, request_: SpeechRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(engine: IndexTTSEngine) -> None:
        opened = threading.Event()
        with counted(monkeypatch, opened, vocoder_of(engine)) as codes:
            await leave_at_first(engine.stream(replace(request_, text=TEXT * 30)), opened)
            so_far = len(codes)
            await asyncio.sleep(0.2)
            assert len(codes) == so_far  # the engine was idle when aclose returned
        assert so_far <= 301
        again = await spoken(engine, request_)
        assert sum(map(len, again)) > 24_000

    with_engine(checkpoint, use)


# Below the engine: the synthesiser with its own runtime.


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Runtime:
    return Checkpoint.open(checkpoint).load(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def voice(tiny: Runtime) -> AnalysedVoice:
    mel = tiny.log_mel(torch.randn(24_000, generator=torch.Generator().manual_seed(0)) / 10)
    return AnalysedVoice(tiny.condition(mel), tiny.speaker(mel))


SEGMENTS = [[5, 20, 31, 7], [44, 12, 13], [90, 8, 17, 55, 60]]
GENERATION = Generation(seed=1, num_beams=1)


def test_sound_leaves_before_the_last_code_is_decoded(
    tiny: Runtime, voice: AnalysedVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesiser = Synthesiser(tiny, look_ahead=4)
    with counted(monkeypatch) as codes:
        decoded_at_sound = []
        for samples in synthesiser.synthesise_by_token(voice, SEGMENTS, GENERATION):
            synthesiser.thread._executor.submit(int).result()  # a vocoder that keeps up with the decoding
            if samples is not None:
                decoded_at_sound.append(len(codes))
        assert 8 <= decoded_at_sound[0] < 40 < len(codes)
    synthesiser.close()


def test_the_next_segment_is_decoded_while_the_last_is_vocoded(
    tiny: Runtime, voice: AnalysedVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesiser = Synthesiser(tiny)
    with counted(monkeypatch) as codes:
        for _ in synthesiser.synthesise_by_token(voice, SEGMENTS[:1], GENERATION):
            pass
    first_segment = len(codes)
    finish = SegmentAudio.finish
    finished: list[int] = []

    def waiting(self: SegmentAudio, latents: torch.Tensor | None) -> Job[torch.Tensor]:
        if not finished:
            eventually(lambda: len(codes) > first_segment)
        finished.append(len(codes))
        return finish(self, latents)

    monkeypatch.setattr(SegmentAudio, "finish", waiting)
    with counted(monkeypatch) as codes:
        for _ in synthesiser.synthesise_by_token(voice, SEGMENTS, GENERATION):
            pass
    synthesiser.close()
    assert finished[0] > first_segment


def test_a_closed_narration_decodes_no_more(
    tiny: Runtime, voice: AnalysedVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    for speak in ("token", "sentence"):
        synthesiser = Synthesiser(tiny)
        with counted(monkeypatch) as codes:
            audio = (
                synthesiser.synthesise_by_token(voice, SEGMENTS, GENERATION)
                if speak == "token"
                else synthesiser.synthesise_by_sentence(voice, SEGMENTS, GENERATION, 3)
            )
            for _ in range(3):
                next(audio)
            audio.close()
            assert len(codes) == 3
        synthesiser.close()


def test_segments_join_without_a_click(tiny: Runtime, voice: AnalysedVoice) -> None:
    """The audio fades to and from silence at joins; the outer ends are unchanged."""
    synthesiser = Synthesiser(tiny)
    ends = []
    for count in range(1, len(SEGMENTS)):
        beginning = synthesiser.synthesise_by_token(voice, SEGMENTS[:count], GENERATION)
        ends.append(sum(len(part) for part in beginning if isinstance(part, np.ndarray)))
    parts = [s for s in synthesiser.synthesise_by_token(voice, SEGMENTS, GENERATION) if isinstance(s, np.ndarray)]
    synthesiser.close()
    audio = np.concatenate(parts)
    loudness = np.abs(audio).mean()
    for end in ends:
        assert np.abs(audio[end - 2 : end + 2]).max() < loudness / 4
        assert audio[end] == 0.0
        assert audio[end - 1] == 0.0
    assert audio[0] != 0.0
    assert audio[-1] != 0.0


def test_requests_whose_windows_share_batches_get_what_they_get_alone(voice: AnalysedVoice, checkpoint: Path) -> None:
    generations = [replace(GENERATION, seed=seed, max_mel_tokens=30) for seed in range(3)]

    def audio(synthesiser: Synthesiser, which: int) -> Audio:
        return synthesiser.synthesise_by_token(voice, SEGMENTS[which : which + 1], generations[which])

    runtime = Checkpoint.open(checkpoint).load(torch.device("cpu"), torch.float32)
    alone = Synthesiser(runtime)
    expected = [samples_of(audio(alone, which)) for which in range(3)]
    alone.close()
    reach = runtime.vocoder.shape.reach
    runtime.record(window_sizes(reach, reach), requests=3)
    sizes: list[int] = []
    runtime.vocoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    synthesiser, begin = Synthesiser(runtime, wake=lambda: None), threading.Event()
    with synthesiser.thread.session() as first:
        first.submit(lambda _: waiting_for(begin), lambda: None)
        requests = [audio(synthesiser, which) for which in range(3)]
        for request in requests:
            while not isinstance(next(request), Waiting):
                pass
        begin.set()
        for request, samples in zip(requests, expected, strict=True):
            np.testing.assert_allclose(samples_of(request), samples, atol=1e-4)
    synthesiser.close()
    assert max(sizes) > 1


def test_long_silence_is_cut_as_it_comes() -> None:
    codes = [7] + [stream.SILENT_CODE] * 14 + [8] + [stream.SILENT_CODE] * 3
    pairs = [(code, torch.tensor(index)) for index, code in enumerate(codes)]
    kept = [int(latent) if isinstance(latent, torch.Tensor) else latent for latent in without_long_silence(pairs)]
    assert kept == [*range(11), None, None, None, None, *range(15, 19)]


def test_chunks_grow_and_wait_for_the_look_ahead_once() -> None:
    sizes = stream.chunk_sizes(31)
    assert [next(sizes) for _ in range(6)] == [35, 8, 16, 32, 32, 32]


def test_voices_are_kept_by_content_and_bounded(tiny: Runtime, tmp_path: Path) -> None:
    decoded: list[str] = []

    def decode(path: Path) -> tuple[FloatSamples, int]:
        decoded.append(path.name)
        return np.random.default_rng(len(decoded)).standard_normal(8000).astype(np.float32), 24_000

    voices = VoiceCache(tiny, 2, decode, FileDigests())
    for name, content in (("a", b"1"), ("copy of a", b"1"), ("b", b"2"), ("c", b"3")):
        (tmp_path / name).write_bytes(content)
    first = voices.get(tmp_path / "a")
    assert voices.get(tmp_path / "copy of a") is first
    voices.get(tmp_path / "b")
    voices.get(tmp_path / "a")
    voices.get(tmp_path / "c")  # b, the one not heard for longest, goes
    assert voices.get(tmp_path / "a") is first
    voices.get(tmp_path / "b")
    assert decoded == ["a", "b", "c", "b"]
    (tmp_path / "a").write_bytes(b"4")
    assert voices.get(tmp_path / "a") is not first
