"""Kokoro-82M with its real int8 weights and voices."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnxruntime import RunOptions

from streaming_server.audio.pitch import pitch_hz
from streaming_server.domain import (
    AudioChunk,
    Capability,
    FloatSamples,
    Mark,
    Pronunciation,
    SpeechRequest,
    Voice,
    parse_blend,
)
from streaming_server.engines.kokoro import network
from streaming_server.engines.kokoro.engine import KokoroEngine
from streaming_server.engines.kokoro.folder import find_models, find_voices
from streaming_server.engines.kokoro.network import Speech
from streaming_server.engines.kokoro.phonemes import FIRST_PIECE, MAX_PIECE, japanese, mandarin, split, tokens
from streaming_server.engines.kokoro.voices import OPENAI, VoiceStyles, voice_of_pitch
from streaming_server.engines.load import Load
from streaming_server.errors import EngineFailed, EngineUnavailable, InvalidRequest, VoiceUnknown
from streaming_server.speech.timeline import Passage
from tests.support.asr import timed_words, word_error_rate, words
from tests.support.kokoro import make_folder
from tests.support.server import running

RATE_HZ = 24000
RECORDINGS = Path(__file__).parents[2] / "reference_audios"
SENTENCE = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("kokoro"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[KokoroEngine]:
    engine = KokoroEngine(model_dir=folder)
    asyncio.run(engine.warm())
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture(scope="module")
def bare_engine(folder: Path) -> Iterator[KokoroEngine]:
    """Started where the packages of espeak-ng and of Japanese are missing."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("espeakng_loader", "mojimoji"):
            patch.setitem(sys.modules, name, None)
        engine = KokoroEngine(model_dir=folder)
    yield engine
    asyncio.run(engine.aclose())


def own(name: str) -> Voice:
    return Voice(name, is_preset=True)


def speak(engine: KokoroEngine, text: str, voice: Voice, speed: float = 1.0) -> FloatSamples:
    async def collect() -> FloatSamples:
        async with aclosing(engine.stream(SpeechRequest(text, voice, speed=speed))) as chunks:
            return np.concatenate([np.empty(0, np.float32), *[chunk.samples async for chunk in chunks]])

    return asyncio.run(collect())


@pytest.fixture(scope="module")
def timed_sentence(engine: KokoroEngine) -> tuple[FloatSamples, list[Mark]]:
    async def collect() -> list[AudioChunk]:
        async with aclosing(engine.stream(SpeechRequest(SENTENCE, own("af_heart")))) as chunks:
            return [chunk async for chunk in chunks]

    chunks = asyncio.run(collect())
    return np.concatenate([chunk.samples for chunk in chunks]), [mark for chunk in chunks for mark in chunk.marks]


@pytest.fixture(scope="module")
def sentence(timed_sentence: tuple[FloatSamples, list[Mark]]) -> FloatSamples:
    return timed_sentence[0]


def test_words_have_the_times_of_the_network(timed_sentence: tuple[FloatSamples, list[Mark]]) -> None:
    samples, marks = timed_sentence
    passage = Passage(SENTENCE, 0.0, samples.size / RATE_HZ, marks)
    assert passage.precision == "engine"
    spoken = [(words(word.text)[0], word.start_s) for word in passage.words()]
    heard = timed_words(samples, RATE_HZ)
    assert [word for word, _ in heard] == [word for word, _ in spoken]
    differences = [abs(one - other) for (_, one), (_, other) in zip(spoken, heard, strict=True)]
    assert np.median(differences) < 0.1


def test_phonemes_and_languages_reach_the_network(engine: KokoroEngine) -> None:
    loop = asyncio.new_event_loop()
    (piece,) = engine._pieces("Say Mr. Smith, now.", "af_heart", loop, "", (Pronunciation(4, 13, "ˈsmɪθ"),))
    assert "smˈɪθ, nˈW." in piece.phonemes
    assert [text for _, text in piece.words] == [(0, 3), (4, 14), (15, 19)]
    (chinese,) = engine._pieces("我说", "af_heart", loop, "", ())
    (mixed,) = engine._pieces("我说", "af_heart", loop, "", (Pronunciation(1, 2, "ˈsmɪθ"),))
    assert mixed.phonemes.endswith("smˈɪθ")
    assert chinese.phonemes != mixed.phonemes
    languages = {part.language for part in engine._pieces("Hello 東京", "af_heart", loop, "ja", ())}
    assert languages == {"en-us", "ja"}
    pieces = engine._pieces("List\nMilk\nand tea\n\nAt six p.m. She left", "af_heart", loop)
    assert [piece.phonemes[-1] == "." for piece in pieces] == [True, True, True, False]
    cut = list(engine._pieces("The total is 1,234,567,890 now.", "af_heart", loop))
    begins = [place[0] for piece in cut for _, place in piece.words]
    assert len(cut) > 1
    assert [begin for begin in begins if begin is not None] == [0, 4, 10, 13, 27]
    loop.close()


def test_english_is_understood(sentence: FloatSamples) -> None:
    assert word_error_rate([(sentence, SENTENCE)], RATE_HZ) <= 0.12
    assert word_error_rate([(sentence[::-1].copy(), SENTENCE)], RATE_HZ) > 0.5
    assert word_error_rate([(sentence, "Nobody ever said anything of the kind to me.")], RATE_HZ) > 0.5


def test_the_same_request_gives_the_same_samples(engine: KokoroEngine, sentence: FloatSamples) -> None:
    assert Capability.SEED in engine.info.capabilities
    assert np.array_equal(speak(engine, SENTENCE, own("af_heart")), sentence)


def test_speed_is_the_models_own(engine: KokoroEngine, sentence: FloatSamples) -> None:
    assert Capability.SPEED in engine.info.capabilities
    fast = speak(engine, SENTENCE, own("af_heart"), 1.5)
    assert fast.size == pytest.approx(sentence.size / 1.5, rel=0.12)
    assert word_error_rate([(fast, SENTENCE)], RATE_HZ) <= 0.12
    fastest = speak(engine, SENTENCE, own("af_heart"), 4.0)
    assert sentence.size / fastest.size == pytest.approx(4.0, rel=0.12)


def test_languages_are_mixed_in_one_text(engine: KokoroEngine) -> None:
    alone = [speak(engine, text, own("af_heart")).size for text in ("我用", "Python")]
    assert speak(engine, "我用Python", own("af_heart")).size == pytest.approx(sum(alone), rel=0.02)
    with pytest.raises(InvalidRequest, match=r"Привет.*in the language of the voice"):
        speak(engine, "Hello. Привет", own("af_heart"))
    with pytest.raises(InvalidRequest, match="தமிழ்"):
        speak(engine, "தமிழ்", own("af_heart"))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("voice", "text", "phonemes"),
    [
        ("ef_dora", "¿Dónde? El perro salta — y cuesta 1,5 euros.", "dˈonde? el pˈero sˈalta — i"),
        ("ff_siwis", "L'homme mange, c'est le weekend.", "lˈɔm mˈɑ̃ʒ, sɛ lə wiːkˈɛnd."),
        ("if_sara", "Un pezzo di pizza, grazie!", "ʊn pˈɛʦːo dɪ pˈiʦːa, ɡrˈaʦje!"),
        ("pm_alex", "Não há ninguém (aqui) hoje.", "nˌɐ̃ʊ̃ a niŋɡˈAŋ (akˈi) ˈoʒy."),
        ("hf_alpha", "नमस्ते दुनिया।", "nəmˈʌsteː dˈʊnɪjˌaː."),
        ("af_heart", "नमस्ते दुनिया।", "nəmˈʌsteː dˈʊnɪjˌaː."),
        ("pf_dora+af_heart", "Não há.", "nˌɐ̃ʊ̃ ˈa."),
    ],
)
async def test_other_languages_are_read_by_espeak(engine: KokoroEngine, voice: str, text: str, phonemes: str) -> None:
    def pieces(loop: asyncio.AbstractEventLoop) -> str:
        return " ".join(piece.phonemes for piece in engine._pieces(text, voice, loop))

    found = await asyncio.to_thread(pieces, asyncio.get_running_loop())
    assert found.startswith(phonemes)
    assert len(tokens(found)) == len(found)


def test_a_spanish_voice_speaks_spanish(engine: KokoroEngine) -> None:
    assert 0.5 < speak(engine, "Hola, amigo.", own("ef_dora")).size / RATE_HZ < 3


@pytest.mark.parametrize(("voice", "text"), [("ef_dora", "¡¡…!!"), ("af_heart", "🎉")])
def test_a_text_without_words_is_a_short_silence(engine: KokoroEngine, voice: str, text: str) -> None:
    samples = speak(engine, text, own(voice))
    assert 0 < samples.size < RATE_HZ
    assert not samples.any()


@pytest.mark.parametrize(
    ("text", "pauses_ms"),
    [("One. Two", [380]), ("“One.” (Two!) Three", [380, 380]), ("One two", []), ("One? 我说：二。Three.", [380, 380])],
)
def test_there_is_a_pause_between_sentences(
    engine: KokoroEngine, monkeypatch: pytest.MonkeyPatch, text: str, pauses_ms: list[int]
) -> None:
    """And none at the end. The network is replaced by one that hums without a break."""
    hum = np.full(RATE_HZ // 2, 0.1, np.float32)
    monkeypatch.setattr(engine._network, "run", lambda *_: Speech(hum, None))
    samples = speak(engine, text, own("af_heart"))
    edges = np.flatnonzero(np.diff(np.concatenate([[True], samples == 0, [True]])))
    silences = np.diff(edges)[1::2]
    assert (silences * 1000 / RATE_HZ).tolist() == pauses_ms
    assert samples.size == sum(silences) + (1 + len(pauses_ms)) * hum.size


@pytest.mark.parametrize(
    ("kind", "given", "has_speed"), [("tensor(int32)", [1], False), ("tensor(float)", [1.5], True)]
)
def test_a_network_with_whole_speeds_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, given: list[float], has_speed: bool
) -> None:
    """The server then changes the speed of the audio."""
    seen: list[float] = []

    class Session:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

        def get_inputs(self) -> list[SimpleNamespace]:
            types = {"input_ids": "tensor(int64)", "style": "tensor(float)", "speed": kind}
            return [SimpleNamespace(name=name, type=type_) for name, type_ in types.items()]

        def run(self, _: None, inputs: dict[str, npt.NDArray[np.generic]], stop: RunOptions) -> list[FloatSamples]:
            seen.extend(inputs["speed"].tolist())
            return [np.full(RATE_HZ, 0.1, np.float32)]

    (tmp_path / "onnx").mkdir()
    (tmp_path / "voices").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"-")
    (tmp_path / "voices" / "af_heart.bin").write_bytes(np.zeros((510, 256), np.float32).tobytes())
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    whole = KokoroEngine(model_dir=tmp_path)
    whole._converters["en-us"] = lambda _: "jˈɛs."
    assert (Capability.SPEED in whole.info.capabilities) == has_speed
    speak(whole, "Yes.", own("af_heart"), 1.5)
    assert seen == given
    asyncio.run(whole.aclose())


def test_without_espeak_another_language_is_refused(bare_engine: KokoroEngine) -> None:
    with pytest.raises(InvalidRequest, match=r"text is in .* needs espeak-ng \(scripts/install espeak\)"):
        speak(bare_engine, "Hola.", own("ef_dora"))


@pytest.mark.parametrize(
    ("text", "voice", "language", "problem"),
    [
        ("Hello there. नमस्ते", "af_heart", "", "needs espeak-ng"),
        ("Hello there.", "ef_dora", "", "needs espeak-ng"),
        ("42", "ef_dora", "", "needs espeak-ng"),
        ("Hello there.", "af_heart", "it", "needs espeak-ng"),
        ("Hello there.", "ef_dora", "en", ""),
        ("東京", "af_heart", "", ""),
        ("東京", "af_heart", "ja", "needs mojimoji: scripts/install kokoro japanese"),
        ("東京です", "af_heart", "", "needs mojimoji"),
        ("Hello. Привет", "af_heart", "", "cannot speak, 'Привет'"),
    ],
)
def test_what_cannot_be_spoken_is_known_before_the_synthesis(
    bare_engine: KokoroEngine, text: str, voice: str, language: str, problem: str
) -> None:
    found = bare_engine.refusal(SpeechRequest(text, own(voice), language=language))
    assert problem in found
    assert bool(found) is bool(problem)


def test_mandarin_tones_have_their_contours(engine: KokoroEngine) -> None:
    contours = {}
    for tone, syllable in ((1, "汤"), (2, "糖"), (4, "烫")):
        voiced = pitch_hz(speak(engine, f"这个字是{syllable}。", own("zf_xiaoxiao")), RATE_HZ)
        places = np.flatnonzero(voiced)
        rhyme = np.split(places, np.flatnonzero(np.diff(places) > 2) + 1)[-1]  # its first consonant has no voice
        begin, middle, end = (12 * np.log2(np.median(voiced[third])) for third in np.array_split(rhyme, 3))
        contours[tone] = (middle - begin, end - begin)
    level, rising, falling = contours.values()
    assert abs(level[1]) < 2
    assert rising[0] > 1
    assert rising[1] > 3
    assert falling[0] < -3


@pytest.mark.parametrize(
    ("device", "offered", "chosen"),
    [
        ("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"], ["model_fp16", "CUDAExecutionProvider"]),
        ("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"], ["model_fp16", "CUDAExecutionProvider"]),
        ("cpu", ["CUDAExecutionProvider", "CPUExecutionProvider"], ["model_quantized"]),
        ("auto", ["AzureExecutionProvider", "CPUExecutionProvider"], ["model_quantized"]),
    ],
)
def test_cuda_is_chosen_where_it_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, offered: list[str], chosen: list[str]
) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "voices").mkdir()
    for name in ("onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx", "voices/af_heart.bin"):
        (tmp_path / name).write_bytes(b"-")
    asked: list[object] = []

    def session(model: Path, options: object, providers: list[str]) -> object:
        asked.extend((model.stem, *providers))
        raise RuntimeError("no session is made")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(EngineUnavailable, match="no session is made"):
        KokoroEngine(model_dir=tmp_path, device=device)
    assert asked == [*chosen, "CPUExecutionProvider"]


class _CpuSession:
    """What ONNX Runtime makes where CUDA does not load: a session on the CPU, without an exception."""

    def __init__(self, model: Path, options: object, providers: list[str]) -> None:
        pass

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name, type="tensor(float)") for name in ("input_ids", "style", "speed")]


def test_cuda_that_does_not_load_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "voices").mkdir()
    for name in ("onnx/model_fp16.onnx", "onnx/model_quantized.onnx", "voices/af_heart.bin"):
        (tmp_path / name).write_bytes(b"-")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", _CpuSession)
    with pytest.raises(EngineUnavailable, match="DEVICE=cuda: ONNX Runtime cannot load CUDA or cuDNN, or finds no GPU"):
        KokoroEngine(model_dir=tmp_path, device="cuda")
    assert not caplog.records
    engine = KokoroEngine(model_dir=tmp_path)
    asyncio.run(engine.aclose())
    assert (engine.info.device, engine.info.precision) == ("cpu", "int8")
    [record] = caplog.records
    assert record.getMessage().startswith("GPU not used: ONNX Runtime cannot load CUDA")


def test_a_recording_is_answered_by_a_voice_of_its_own(engine: KokoroEngine) -> None:
    recordings = [Voice(f"voice_{number:02}", RECORDINGS / f"voice_{number:02}.wav") for number in (1, 2)]
    first, second = (speak(engine, "Yes.", recording) for recording in recordings)
    assert np.array_equal(first, speak(engine, "Yes.", own("af_alloy")))
    assert np.array_equal(second, speak(engine, "Yes.", own("am_echo")))


def test_presets_and_voices_for_pitches(engine: KokoroEngine, folder: Path) -> None:
    named = {preset.name: preset for preset in engine.info.presets}
    assert named.keys() == find_voices(folder).keys() | OPENAI.keys()
    assert (named["zm_yunxi"].gender, named["zm_yunxi"].languages) == ("male", ("zh",))
    assert (named["nova"].gender, named["fable"].languages) == ("female", ("en-GB",))
    assert [voice_of_pitch(pitch_hz) for pitch_hz in (100, 190, None)] == ["am_onyx", "af_heart", "af_heart"]


def test_closing_ends_a_call_of_the_network(engine: KokoroEngine, sentence: FloatSamples) -> None:
    async def leave() -> None:
        chunks = engine.stream(SpeechRequest(SENTENCE * 200, own("af_heart")))
        await anext(chunks)
        await chunks.aclose()
        waiting = asyncio.create_task(anext(engine.stream(SpeechRequest(SENTENCE * 200, own("af_heart")))))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.wait([waiting])

    asyncio.run(leave())
    assert np.array_equal(speak(engine, SENTENCE, own("af_heart")), sentence)


def test_each_of_several_at_once_is_what_it_is_alone(engine: KokoroEngine, sentence: FloatSamples) -> None:
    engine.reserve(3)
    other = speak(engine, "你好。", own("zf_xiaoxiao"))

    async def collect(text: str, voice: str) -> FloatSamples:
        async with aclosing(engine.stream(SpeechRequest(text, own(voice)))) as chunks:
            return np.concatenate([chunk.samples async for chunk in chunks])

    async def together() -> tuple[FloatSamples, FloatSamples]:
        async with aclosing(engine.stream(SpeechRequest(SENTENCE * 20, own("am_adam")))) as leaving:
            await anext(leaving)
            both = asyncio.gather(collect(SENTENCE, "af_heart"), collect("你好。", "zf_xiaoxiao"))
            await anext(leaving)
        return await both

    assert all(map(np.array_equal, asyncio.run(together()), (sentence, other)))


def test_a_new_listener_is_served_before_those_who_have_audio_left(
    engine: KokoroEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    may_go_on = threading.Event()

    def run(ids: Sequence[int], style: FloatSamples, speed: float, stop: RunOptions) -> Speech:
        calls.append(len(ids))
        assert may_go_on.wait(180)
        return Speech(np.full(10 * RATE_HZ, 0.1, np.float32), None)

    monkeypatch.setattr(engine._network, "run", run)

    async def collect(text: str) -> int:
        async with aclosing(engine.stream(SpeechRequest(text, own("af_heart")))) as chunks:
            return sum([chunk.samples.size async for chunk in chunks])

    async def together() -> list[int]:
        first = asyncio.create_task(collect("No. No. No. No."))
        while not calls:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(collect("Yes please, do."))
        await asyncio.sleep(0.01)
        may_go_on.set()
        return [await first, await second]

    made = asyncio.run(together())
    assert min(made) >= 10 * RATE_HZ
    of_first, of_second, *others = calls
    assert others == [of_first] * 3
    assert of_second != of_first


def test_there_is_room_while_all_listeners_can_be_kept_up_with(
    engine: KokoroEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Load()
    monkeypatch.setattr(engine, "_load", load)
    load.add(1.0, 4.0)
    assert engine.has_room(2)
    assert not engine.has_room(3)


def test_a_stopped_call_returns_no_samples(engine: KokoroEngine, folder: Path) -> None:
    stop = RunOptions()
    stop.terminate = True
    style = VoiceStyles(find_voices(folder)).style("af_heart", "en-us").of(3)
    assert engine._network.run(tokens("həlˈO"), style, 1.0, stop).samples.size == 0


def test_both_published_layouts_hold_the_same_voices(folder: Path, tmp_path: Path) -> None:
    voices = find_voices(folder)
    assert len(voices) == 54
    rows = {name: np.fromfile(path, np.float32).reshape(510, 1, 256) for name, path in voices.items()}
    with (tmp_path / "voices-v1.0.bin").open("wb") as archive:
        np.savez(archive, **rows)  # type: ignore[arg-type]
    (tmp_path / "kokoro-v1.0.int8.onnx").symlink_to(folder / "onnx" / "model_quantized.onnx")
    (tmp_path / "kokoro-v1.0.onnx").touch()
    assert find_voices(tmp_path).keys() == voices.keys()
    assert {name: path.name for name, path in find_models(tmp_path).items()} == {
        "int8": "kokoro-v1.0.int8.onnx",
        "fp32": "kokoro-v1.0.onnx",
    }
    for name in ("af_heart", "zf_xiaoxiao:0.3+bm_george:0.7"):
        one, other = (VoiceStyles(find_voices(place)).style(name, "cmn") for place in (folder, tmp_path))
        assert np.array_equal(one.rows, other.rows)


def test_products_in_place_of_convolutions_give_the_same_samples(
    folder: Path, engine: KokoroEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "as_products", lambda model: model)
    plain = KokoroEngine(model_dir=folder)
    try:
        found, expected = (speak(one, SENTENCE, own("af_heart")) for one in (engine, plain))
    finally:
        asyncio.run(plain.aclose())
    np.testing.assert_array_equal(found, expected)


def test_what_is_missing_or_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="has no onnx/model"):
        KokoroEngine(model_dir=tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineUnavailable, match="has no voices/"):
        KokoroEngine(model_dir=tmp_path)
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "af_heart.bin").write_bytes(b"short")
    with pytest.raises(EngineUnavailable, match=r"model\.onnx cannot be loaded"):
        KokoroEngine(model_dir=tmp_path)
    with pytest.raises(EngineUnavailable, match="no fp16 model; it has fp32"):
        KokoroEngine(model_dir=tmp_path, precision="fp16")
    with pytest.raises(EngineUnavailable, match="DEVICE=cuda"):
        KokoroEngine(model_dir=folder, device="cuda")
    with pytest.raises(EngineFailed, match="af_heart cannot be read"):
        VoiceStyles(find_voices(tmp_path)).style("af_heart", "en-us")
    with pytest.raises(VoiceUnknown, match="af_nobody"):
        VoiceStyles(find_voices(folder)).style("af_heart+af_nobody", "en-us")


def test_a_voice_keeps_its_timbre_and_takes_the_melody_of_a_native(folder: Path) -> None:
    styles = VoiceStyles(find_voices(folder))
    heart, george, xiaoxiao = (
        styles.style(name, language).rows
        for name, language in (("af_heart", "en-us"), ("bm_george", "en-us"), ("zf_xiaoxiao", "cmn"))
    )
    mixed = styles.style("af_heart", "cmn").rows
    assert np.array_equal(mixed[:, :128], heart[:, :128])
    assert np.array_equal(mixed[:, 128:], xiaoxiao[:, 128:])
    blend = styles.style("af_heart:3+bm_george:1", "en-us").rows
    assert np.allclose(blend, 0.75 * heart + 0.25 * george, atol=1e-6)
    both = styles.style("af_heart+zf_xiaoxiao", "cmn").rows
    assert np.allclose(both[:, :128], (heart + xiaoxiao)[:, :128] / 2, atol=1e-6)
    assert np.array_equal(both[:, 128:], xiaoxiao[:, 128:])


@pytest.mark.parametrize(
    ("name", "blend"),
    [
        ("af_heart", [("af_heart", 1)]),
        ("a+b", [("a", 1), ("b", 1)]),
        ("af_bella:0.7+bm_george:0.3", [("af_bella", 0.7), ("bm_george", 0.3)]),
        ("a:0", [("a:0", 1)]),
        ("a:nan+b:-1", [("a:nan", 1), ("b:-1", 1)]),
    ],
)
def test_blends(name: str, blend: list[tuple[str, float]]) -> None:
    assert list(parse_blend(name)) == blend


def test_mandarin_and_japanese_have_phonemes_that_the_model_knows() -> None:
    chinese = mandarin()
    for convert, text in ((chinese, "2024年，北风和太阳正在争论谁更强大。"), (japanese(), "こんにちは、世界。")):
        phonemes = convert(text)
        assert len(tokens(phonemes)) == len(phonemes) > 10
    for text, spoken in (("销量3,000台", "销量三千台"), ("气温-5℃", "气温零下五摄氏度"), ("10:30", "十点三十分")):
        assert chinese(text) == chinese(spoken)


@pytest.mark.parametrize("phonemes", ["a" * 1000, "ab cd, " * 100, "həlˈO ðˈɛɹ", "", "one, two three four five. " * 9])
def test_pieces_grow_and_hold_all(phonemes: str) -> None:
    pieces = list(split(phonemes.strip(), FIRST_PIECE))
    assert "".join(pieces).replace(" ", "") == phonemes.replace(" ", "")
    assert all(len(piece) <= MAX_PIECE * 1.25 for piece in pieces)
    if len(phonemes) > 2 * FIRST_PIECE:
        assert len(pieces[0]) <= FIRST_PIECE


def test_a_server_speaks_in_the_voices_and_their_blends(folder: Path) -> None:
    with running(KokoroEngine(model_dir=folder)) as live:
        assert "zf_xiaoxiao" in live.get("/v1/audio/voices").text

        def speech(voice: str) -> httpx.Response:
            body = {"model": "tts-1", "input": "Yes.", "voice": voice, "response_format": "pcm"}
            return live.post("/v1/audio/speech", body)

        one, other, blend, openai = (
            speech(voice) for voice in ("af_heart", "am_onyx", "af_heart:0.7+am_onyx:0.3", "onyx")
        )
        assert [answer.status_code for answer in (one, other, blend, openai)] == [200] * 4
        assert len({answer.content for answer in (one, other, blend)}) == 3
        assert openai.content == other.content
        assert speech("af_heart+af_nobody").status_code == 400
        form = {"name": "af_heart+am_onyx", "consent": "in writing"}
        taken = live.client.post("/v1/audio/voices", data=form, files={"audio_sample": ("a.wav", b"any")})
        assert (taken.status_code, "taken" in taken.text) == (400, True)
