"""The engine from request to audio, on tiny folders of 2.0 and 2.5."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streaming_server.audio.decode import decode_native
from streaming_server.domain import Capability, Emotion, FloatSamples, Generation, Granularity, SpeechRequest, Voice
from streaming_server.engines.content_cache import FileDigests
from streaming_server.engines.indextts.stream import Audio
from streaming_server.engines.indextts2 import engine as engine_module
from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.chunks import CHUNK, SEGMENT
from streaming_server.engines.indextts2.engine import RECORDED_SLOWDOWN, IndexTTS2Engine, Loaded
from streaming_server.engines.indextts2.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts2.flow import Slots
from streaming_server.engines.indextts2.folder import Checkpoint
from streaming_server.engines.indextts2.options import IndexTTS2Options
from streaming_server.engines.indextts2.reading import Segment
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.indextts2.stream import PAUSE_S, Delivery, Synthesiser
from streaming_server.engines.indextts2.synthesis import record
from streaming_server.engines.indextts2.voices import VoiceCache
from streaming_server.engines.threads import Waiting
from streaming_server.engines.torch.model_engine import ModelEngine, run_alone
from streaming_server.errors import EngineUnavailable, VoiceFileMissing, VoiceUnreadable
from tests.engines.indextts.test_engine import (
    counted,
    leave_at_first,
    samples_of,
    spoken,
    vocoder_of,
    waiting_for,
    write_voice,
)
from tests.support.engines import SharedEngines

VERSIONS = ("2.0", "2.5")
TEXT = "你好, 世界. Hello world! 今天天气很好。"
QUICK = IndexTTS2Options(steps=2, device="cpu")
CHUNKED = Granularity.TOKEN
WHOLE = Granularity.SENTENCE


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> list[Voice]:
    folder = tmp_path_factory.mktemp("voices")
    return [Voice(f"v{seed}", write_voice(folder / f"v{seed}.wav", seed=seed)) for seed in range(2)]


@pytest.fixture(scope="module")
def request_(voices: Sequence[Voice]) -> SpeechRequest:
    generation = Generation(seed=3, max_mel_tokens=60, max_text_tokens_per_sentence=14, num_beams=1)
    return SpeechRequest(TEXT, voices[0], generation)


def create(folder: Path, options: IndexTTS2Options) -> IndexTTS2Engine:
    return IndexTTS2Engine(options.model_copy(update={"model_dir": folder}))


ENGINES = SharedEngines(create)


@pytest.fixture(autouse=True, scope="module")
def engines() -> Iterator[None]:
    yield
    ENGINES.close()


def with_engine(folder: Path, use: Callable[[ModelEngine], Awaitable[Any]], options: IndexTTS2Options = QUICK) -> Any:
    return ENGINES.use(use, folder, options)


async def said(engine: ModelEngine, request: SpeechRequest) -> FloatSamples:
    return np.concatenate(await spoken(engine, request))


def heard(folder: Path, requests: Sequence[SpeechRequest], options: IndexTTS2Options = QUICK) -> list[FloatSamples]:
    async def use(engine: ModelEngine) -> list[FloatSamples]:
        return [await said(engine, request) for request in requests]

    audio: list[FloatSamples] = with_engine(folder, use, options)
    return audio


@pytest.mark.parametrize("version", VERSIONS)
def test_a_request_becomes_audio_both_ways(folders: dict[str, Path], request_: SpeechRequest, version: str) -> None:
    chunked, whole = heard(folders[version], [replace(request_, granularity=way) for way in (CHUNKED, WHOLE)])
    assert chunked.dtype == np.float32
    assert len(chunked) > SAMPLE_RATE_HZ
    assert 0.01 < np.abs(chunked).max() <= 1.0
    # The same codes and the same noise: as long as each other, and not far apart.
    assert len(chunked) == len(whole)
    assert np.abs(chunked - whole).max() > 0


def test_a_stream_that_says_nothing_goes_the_way_that_is_set(folders: dict[str, Path], request_: SpeechRequest) -> None:
    ways = [request_, replace(request_, granularity=CHUNKED), replace(request_, granularity=WHOLE)]
    unsaid, chunked, whole = heard(folders["2.5"], ways, options=QUICK.model_copy(update={"stream": "chunk"}))
    assert np.array_equal(unsaid, chunked)
    assert not np.array_equal(unsaid, whole)
    unsaid, again = heard(folders["2.5"], ways[::2], options=QUICK.model_copy(update={"stream": "segment"}))
    assert np.array_equal(unsaid, again)
    assert np.array_equal(unsaid, whole)


@pytest.mark.parametrize("granularity", Granularity)
def test_a_seed_gives_the_same_audio_again(
    folders: dict[str, Path], request_: SpeechRequest, granularity: Granularity
) -> None:
    request = replace(request_, granularity=granularity)
    other = replace(request, generation=replace(request.generation, seed=4))
    first, changed, again = heard(folders["2.0"], [request, other, request])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, changed[: len(first)])


def test_beams_and_batches_are_honoured_where_segments_are_whole(
    folders: dict[str, Path], request_: SpeechRequest
) -> None:
    generation = replace(request_.generation, num_beams=2)
    alone, together, single = heard(
        folders["2.5"],
        [
            replace(request_, granularity=WHOLE, generation=generation),
            replace(request_, granularity=WHOLE, generation=generation, sentence_batch=3),
            replace(request_, granularity=WHOLE),
        ],
    )
    np.testing.assert_allclose(alone, together, atol=1e-4)
    assert not np.array_equal(alone, single[: len(alone)])


@pytest.mark.parametrize(("version", "tokens"), [("2.0", 600 // 12), ("2.5", 600 // 6)])
def test_a_segment_is_no_longer_than_its_codes_can_speak(
    folders: dict[str, Path], request_: SpeechRequest, version: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 50 codes a second 600 are 12 s: 120 tokens would be cut off in the middle."""
    lengths: list[int] = []
    prefix = Runtime.prefix

    def watched(self: Runtime, spk_cond: Any, emotion: Any, ids: Sequence[int], *rest: Any) -> Any:
        lengths.append(len(ids))
        return prefix(self, spk_cond, emotion, ids, *rest)

    monkeypatch.setattr(Runtime, "prefix", watched)
    generation = Generation(seed=1)
    heard(folders[version], [replace(request_, text="今天天气很好" * 25, generation=generation)])
    assert tokens / 2 < max(lengths) <= tokens


def test_more_beams_are_for_those_who_ask_for_whole_segments(folders: dict[str, Path], request_: SpeechRequest) -> None:
    three = replace(request_, text="你好。", generation=replace(request_.generation, num_beams=3))
    unsaid, asked, one = heard(
        folders["2.0"], [three, replace(three, granularity=WHOLE), replace(request_, text="你好。", granularity=WHOLE)]
    )
    assert np.array_equal(unsaid, one)
    assert not np.array_equal(unsaid, asked)


def emotions(voice: Voice) -> dict[str, Emotion | None]:
    vector = (0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3, 0.0)
    return {
        "none": None,
        "reference": Emotion(reference=voice),
        "weaker reference": Emotion(reference=voice, weight=0.3),
        "vector": Emotion(vector=vector),
        "weaker vector": Emotion(vector=vector, weight=0.3),
        "drawn": Emotion(vector=vector, random=True),
        "text": Emotion(text="sad and lonely"),
        "another text": Emotion(text="happy"),
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_each_way_to_name_an_emotion_is_heard(
    folders: dict[str, Path], request_: SpeechRequest, voices: Sequence[Voice], version: str
) -> None:
    wanted = emotions(voices[1])
    requests = [replace(request_, text="你好。", granularity=WHOLE, emotion=emotion) for emotion in wanted.values()]
    vectors: list[torch.Tensor] = []
    prefix = Runtime.prefix

    def watched(self: Runtime, spk_cond: Any, emotion: Any, *rest: Any) -> torch.Tensor:
        vectors.append(emotion)
        return prefix(self, spk_cond, emotion, *rest)

    async def use(engine: ModelEngine) -> None:
        vectors.clear()
        for request in requests:
            await said(engine, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "prefix", watched)
        with_engine(folders[version], use)
    by_name = dict(zip(wanted, vectors[-len(wanted) :], strict=True))  # before them a voice may speak to itself
    names = list(by_name)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert not torch.allclose(by_name[name], by_name[other], atol=1e-5), (name, other)
    base = by_name["none"]
    torch.testing.assert_close(by_name["weaker reference"], base + 0.3 * (by_name["reference"] - base))


def test_a_drawn_emotion_comes_again_with_its_seed(folders: dict[str, Path], request_: SpeechRequest) -> None:
    emotion = Emotion(vector=(0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1), random=True)
    request = replace(request_, text="你好。", granularity=WHOLE, emotion=emotion)
    first, again = heard(folders["2.0"], [request, request])
    assert np.array_equal(first, again)


def test_the_cap_is_a_setting(folders: dict[str, Path], request_: SpeechRequest) -> None:
    """Without the cap, a full emotion replaces that of the voice."""
    request = replace(request_, text="你好。", granularity=WHOLE, emotion=Emotion(vector=(1.0, *[0.0] * 7)))  # type: ignore[arg-type]
    [capped] = heard(folders["2.0"], [request])
    [full] = heard(folders["2.0"], [request], options=QUICK.model_copy(update={"emotion_cap": False}))
    assert not np.array_equal(capped, full)


def test_what_reads_a_description_is_told(
    folders: dict[str, Path], request_: SpeechRequest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        heard(folders["2.0"], [replace(request_, text="你好。", emotion=Emotion(text="happy"))])
    assert "emotion description converted by the words: (1.0, 0.0" in caplog.text


def test_speed_is_the_models_own_in_25_only(folders: dict[str, Path], request_: SpeechRequest) -> None:
    requests = [
        replace(request_, text="你好。", granularity=way, speed=s) for way in (WHOLE, CHUNKED) for s in (1, 0.5, 2)
    ]
    normal, slow, fast, *chunked = (len(audio) for audio in heard(folders["2.5"], requests))
    assert slow == pytest.approx(2 * normal, abs=256)
    assert fast == pytest.approx(normal / 2, abs=256)
    assert chunked == [normal, slow, fast]
    [one, other] = heard(folders["2.0"], requests[:2])
    assert len(one) == len(other)


def test_a_voice_and_an_emotion_are_listened_to_once_for_their_content(
    folders: dict[str, Path], request_: SpeechRequest, tmp_path: Path
) -> None:
    voice, copy = (Voice(name, write_voice(tmp_path / f"{name}.wav", seed=7)) for name in ("voice", "copy"))
    feeling = Emotion(reference=Voice("feeling", write_voice(tmp_path / "feeling.wav", seed=8)))
    requests = [
        replace(request_, text="好。", voice=each, emotion=emotion)
        for each in (voice, copy) for emotion in (None, feeling, feeling)
    ]  # fmt: skip
    listened: list[int] = []
    features = Runtime.features

    def watched(self: Runtime, wav: Any) -> torch.Tensor:
        listened.append(len(wav))
        return features(self, wav)

    async def use(engine: ModelEngine) -> None:
        listened.clear()
        for request in requests:
            await said(engine, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "features", watched)
        with_engine(folders["2.0"], use)
    assert len(listened) == 2


def test_a_recording_that_cannot_be_heard_is_refused(
    folders: dict[str, Path], request_: SpeechRequest, tmp_path: Path
) -> None:
    async def use(engine: ModelEngine) -> None:
        for voice, error in (
            (tmp_path / "missing.wav", VoiceFileMissing),
            (write_voice(tmp_path / "short.wav", 0.05), VoiceUnreadable),
        ):
            with pytest.raises(error):
                await said(engine, replace(request_, voice=Voice("v", voice)))
            with pytest.raises(error):
                await said(engine, replace(request_, emotion=Emotion(reference=Voice("v", voice))))
        for seconds in (0.1, 20):
            path = write_voice(tmp_path / f"{seconds}.wav", seconds, rate_hz=44_100)
            assert len(await said(engine, replace(request_, text="好。", voice=Voice("v", path)))) > 1000

    with_engine(folders["2.0"], use)


def test_closing_a_stream_stops_the_decoding_at_once(
    folders: dict[str, Path], request_: SpeechRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(engine: ModelEngine) -> None:
        opened = threading.Event()
        with counted(monkeypatch, opened, vocoder_of(engine)) as codes:
            await leave_at_first(engine.stream(replace(request_, text=TEXT * 30, granularity=CHUNKED)), opened)
            so_far = len(codes)
            await asyncio.sleep(0.2)
            assert len(codes) == so_far
        assert so_far <= 301
        assert len(await said(engine, request_)) > SAMPLE_RATE_HZ

    with_engine(folders["2.0"], use)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_info_is_true(folders: dict[str, Path], version: str) -> None:
    info = IndexTTS2Engine(QUICK.model_copy(update={"model_dir": folders[version]})).info
    assert (info.name, info.model_type, info.model_version) == ("indextts", "IndexTTS2", f"{version}.0")
    assert (info.sample_rate_hz, info.max_mel_tokens, info.emotion_text_by) == (22_050, 250, "words")
    assert (Capability.SPEED in info.capabilities) is (version == "2.5")
    assert {Capability.SEED, Capability.EMOTION_REFERENCE, Capability.TOKEN_STREAMING} < info.capabilities
    assert Capability.SCENE not in info.capabilities


def test_an_unknown_language_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(EngineUnavailable, match="TTS_LANGUAGE=xx: one of auto, en, zh"):
        IndexTTS2Engine(QUICK.model_copy(update={"model_dir": folders["2.5"], "language": "xx"}))


# Below the engine: the synthesiser with its own runtime.


@pytest.fixture(scope="module", params=VERSIONS)
def tiny(folders: dict[str, Path], request: pytest.FixtureRequest) -> Runtime:
    return Checkpoint.open(folders[request.param]).load(torch.device("cpu"), torch.float32)


def noise(seconds: int) -> FloatSamples:
    samples: FloatSamples = torch.randn(seconds * SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0)).numpy()
    return samples * np.float32(0.1)


SEGMENTS = [Segment([5, 20, 31, 7]), Segment([44, 12, 13]), Segment([90, 8, 17, 55, 60])]


@pytest.fixture(scope="module")
def delivery(tiny: Runtime) -> Delivery:
    voice = VoiceCache(tiny, 1, decode_native, FileDigests(), SEGMENTS[0]).analyse(noise(1), SAMPLE_RATE_HZ)
    assert voice.statistics is not None
    run_alone(voice.statistics.of(tiny, voice), tiny.writer.step)
    return Delivery(voice, voice.emotion, Generation(seed=1, num_beams=1))


def never_stopping(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    head = runtime.gpt.mel_head
    bias = head.bias.clone()
    bias[runtime.gpt.shape.stop_mel] = -1e4
    monkeypatch.setitem(head._parameters, "bias", torch.nn.Parameter(bias, requires_grad=False))


def test_a_chunk_leaves_before_the_segments_last_code_is_decoded(
    tiny: Runtime, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_stopping(tiny, monkeypatch)
    needed = next(CHUNK.code_counts(tiny.acoustics))
    synthesiser = Synthesiser(tiny, steps=1)
    with counted(monkeypatch) as codes:
        decoded_at_sound = []
        for samples in synthesiser.synthesise_by_chunk(delivery, SEGMENTS[:1]):
            synthesiser.thread._executor.submit(int).result()  # a vocoder that keeps up with the decoding
            if isinstance(samples, np.ndarray):
                decoded_at_sound.append((len(codes), len(samples)))
        assert needed <= decoded_at_sound[0][0] < 100 < len(codes)
        assert decoded_at_sound[0][1] == CHUNK.chunks[0] * tiny.acoustics.samples_per_frame
    synthesiser.close()


def test_a_whole_segment_leaves_after_its_last_code(
    tiny: Runtime, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesiser = Synthesiser(tiny, steps=1)
    with counted(monkeypatch) as codes:
        first = next(
            len(codes)
            for samples in synthesiser.synthesise_by_segment(delivery, SEGMENTS[:1], 1)
            if samples is not None
        )
        assert first == len(codes)
    synthesiser.close()


def test_how_it_is_cut_does_not_change_how_long_it_is(tiny: Runtime, delivery: Delivery) -> None:
    synthesiser = Synthesiser(tiny, steps=2)
    chunked = np.concatenate(
        [s for s in synthesiser.synthesise_by_chunk(delivery, SEGMENTS) if isinstance(s, np.ndarray)]
    )
    whole = np.concatenate(
        [s for s in synthesiser.synthesise_by_segment(delivery, SEGMENTS, 1) if isinstance(s, np.ndarray)]
    )
    assert len(chunked) == len(whole)
    silence = np.ones(round(PAUSE_S * SAMPLE_RATE_HZ))
    silent = np.flatnonzero(np.convolve(np.abs(whole) < 1e-12, silence, "valid") == len(silence))
    assert len(silent) >= 2  # a pause between each two of the three segments
    for start in silent:
        assert np.abs(whole[start - 3 : start]).max() < 1e-2  # and a fade into it
    synthesiser.close()


@pytest.mark.parametrize("way", ["chunk", "segment"])
def test_a_start_that_is_drawn_makes_no_sound(
    tiny: Runtime, delivery: Delivery, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """It is beyond the codebook; the public program would fail."""
    synthesiser = Synthesiser(tiny, steps=1)
    start = tiny.gpt.shape.start_mel
    bias = tiny.gpt.mel_head.bias.clone()
    bias[start] = 1e4
    monkeypatch.setitem(tiny.gpt.mel_head._parameters, "bias", torch.nn.Parameter(bias, requires_grad=False))
    unpenalised = replace(delivery.generation, repetition_penalty=1.0, do_sample=False)
    told = replace(delivery, generation=unpenalised)
    audio = (
        synthesiser.synthesise_by_chunk(told, SEGMENTS[:1])
        if way == "chunk"
        else synthesiser.synthesise_by_segment(told, SEGMENTS[:1], 1)
    )
    assert sum(len(samples) for samples in audio if isinstance(samples, np.ndarray)) == 0
    synthesiser.close()


def test_statistics_of_the_voice_steady_the_first_chunk(tiny: Runtime, delivery: Delivery) -> None:
    assert delivery.voice.statistics is not None
    alone = replace(delivery, voice=replace(delivery.voice, statistics=None))
    synthesiser = Synthesiser(tiny, steps=2)
    steadied, unsteadied, whole = (
        np.concatenate([s for s in audio if isinstance(s, np.ndarray)])
        for audio in (
            synthesiser.synthesise_by_chunk(delivery, SEGMENTS[:1]),
            synthesiser.synthesise_by_chunk(alone, SEGMENTS[:1]),
            synthesiser.synthesise_by_segment(alone, SEGMENTS[:1], 1),
        )
    )
    assert len(steadied) == len(unsteadied) == len(whole)
    first = CHUNK.chunks[0] * tiny.acoustics.samples_per_frame
    assert len(whole) > first
    assert not np.array_equal(steadied[:first], unsteadied[:first])
    synthesiser.close()


def test_a_voice_has_statistics_once_a_stream_needs_them(
    folders: dict[str, Path], request_: SpeechRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take up to 100 codes, which a request that is solved by segment does not wait for."""
    heard(folders["2.0"], [request_])
    calls: list[None] = []
    statistics = Acoustics.statistics

    def counting(self: Acoustics, *arguments: Any) -> torch.Tensor:
        calls.append(None)
        return statistics(self, *arguments)

    monkeypatch.setattr(Acoustics, "statistics", counting)
    voice = Voice("new", write_voice(tmp_path / "new.wav", seed=9))
    by_segment, by_chunk = (replace(request_, voice=voice, granularity=way) for way in (WHOLE, CHUNKED))
    counts = [(heard(folders["2.0"], [request]), len(calls))[1] for request in (by_segment, by_chunk, by_chunk)]
    assert counts == [0, 1, 1]


def test_slow_speech_is_recorded_for_25(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[float] = []
    monkeypatch.setattr(engine_module, "record", lambda *arguments: recorded.append(arguments[5]))
    monkeypatch.setattr(Runtime, "record", lambda _: None)

    async def use(engine: ModelEngine) -> None:
        assert isinstance(engine._loaded, Loaded)
        engine._loaded._record()

    for version in VERSIONS:
        with_engine(folders[version], use)
    assert recorded == [1.0, 1.0, RECORDED_SLOWDOWN, RECORDED_SLOWDOWN]


def test_only_some_seconds_of_the_voice_are_seen_by_chunks(tiny: Runtime) -> None:
    voice = VoiceCache(tiny, 1, decode_native, FileDigests(), None).analyse(noise(20), SAMPLE_RATE_HZ)
    assert voice.full_reference.mel.shape[0] == 15 * SAMPLE_RATE_HZ // 256
    assert voice.stream_reference.mel.shape[0] == round(5 * SAMPLE_RATE_HZ / 256)
    assert torch.equal(voice.full_reference.mel[-10:], voice.stream_reference.mel[-10:])
    assert voice.statistics is None


def test_a_voice_is_heard_at_22_050_hz_and_from_there_at_16(tiny: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the public program: also where the recording has a higher rate."""
    heard_by: dict[str, torch.Tensor] = {}

    def watch(name: str) -> None:
        method = getattr(Runtime, name)

        def watched(self: Runtime, wav: torch.Tensor) -> torch.Tensor:
            heard_by[name] = wav
            result: torch.Tensor = method(self, wav)
            return result

        monkeypatch.setattr(Runtime, name, watched)

    for name in ("features", "mel22", "campplus_style"):
        watch(name)
    wav = noise(2)
    VoiceCache(tiny, 1, decode_native, FileDigests(), None).analyse(wav, 48_000)
    wide = tiny.resample(torch.from_numpy(wav), 48_000, SAMPLE_RATE_HZ)
    assert torch.equal(heard_by["mel22"], wide)
    assert torch.equal(heard_by["features"], tiny.resample(wide, SAMPLE_RATE_HZ, 16_000))
    assert torch.equal(heard_by["features"], heard_by["campplus_style"])


def test_a_closed_narration_decodes_no_more(tiny: Runtime, delivery: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    for way in ("chunk", "segment"):
        synthesiser = Synthesiser(tiny, steps=1)
        with counted(monkeypatch) as codes:
            audio = (
                synthesiser.synthesise_by_chunk(delivery, SEGMENTS)
                if way == "chunk"
                else synthesiser.synthesise_by_segment(delivery, SEGMENTS, 2)
            )
            next(audio)
            audio.close()
            so_far = len(codes)
            time.sleep(0.05)
            assert len(codes) == so_far
        synthesiser.close()


def test_acoustics_are_touched_by_the_vocoders_thread_alone_while_speaking(
    tiny: Runtime, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    mu = Acoustics.mu

    def watched(self: Acoustics, *args: Any, **how: Any) -> torch.Tensor:
        threads.add(threading.current_thread().name)
        return mu(self, *args, **how)

    monkeypatch.setattr(Acoustics, "mu", watched)
    synthesiser = Synthesiser(tiny, steps=1)
    for _ in synthesiser.synthesise_by_chunk(delivery, SEGMENTS[:1]):
        pass
    synthesiser.close()
    assert len(threads) == 1
    assert threads.pop().startswith("vocoder")


def test_requests_whose_solves_share_batches_get_what_they_get_alone(
    tiny: Runtime, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_chunk = tiny.acoustics.decodes_ahead

    def audio(synthesiser: Synthesiser, seed: int) -> Audio:
        told = replace(delivery, generation=replace(delivery.generation, seed=seed, max_mel_tokens=40))
        if by_chunk:
            return synthesiser.synthesise_by_chunk(told, SEGMENTS[:1])
        return synthesiser.synthesise_by_segment(told, SEGMENTS[:1], 1)

    alone = Synthesiser(tiny, steps=2)
    expected = [samples_of(audio(alone, which)) for which in range(3)]
    alone.close()
    acoustics = Acoustics(tiny.acoustics.s2mel, tiny.acoustics.codec, tiny.acoustics.vocoder)
    monkeypatch.setattr(tiny, "acoustics", acoustics)
    record(acoustics, CHUNK if by_chunk else SEGMENT, 90, longest=100, requests=3)
    sizes: list[int] = []
    step = Slots.step

    def noting(self: Slots, size: int) -> None:
        sizes.append(size)
        step(self, size)

    monkeypatch.setattr(Slots, "step", noting)
    synthesiser, begin = Synthesiser(tiny, steps=2, wake=lambda: None), threading.Event()
    with synthesiser.thread.session() as first:
        first.submit(lambda _: waiting_for(begin), lambda: None)
        requests = [audio(synthesiser, which) for which in range(3)]
        leaving = audio(synthesiser, 0)
        for request in (*requests, leaving):
            while not isinstance(next(request), Waiting):
                pass
        leaving.close()
        begin.set()
        for request, samples in zip(requests, expected, strict=True):
            np.testing.assert_allclose(samples_of(request), samples, atol=1e-4)
    synthesiser.close()
    assert max(sizes) > 1
