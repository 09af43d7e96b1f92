from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
import pytest

from streaming_server.audio.encoders import wav_header
from streaming_server.audio.pcm import to_int16
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.domain import FloatSamples, Pronunciation, SpeechRequest, Voice
from streaming_server.engines.espeak.engine import EspeakEngine
from streaming_server.engines.espeak.languages import ALIASES, find_languages, runs
from streaming_server.engines.espeak.library import EspeakLibrary, Timbre, find_files
from streaming_server.engines.espeak.voices import PRESETS, nearest_preset
from streaming_server.engines.recording_voices import RecordingVoices
from streaming_server.errors import VoiceFileMissing, VoiceUnreadable
from streaming_server.speech.dialogue import perform
from streaming_server.speech.timeline import Passage
from tests.support.server import eventually

pytestmark = pytest.mark.anyio
RECORDINGS = sorted((Path(__file__).parents[2] / "reference_audios").glob("*.wav"))
ENGLISH = "The north wind and the sun were disputing which of them was the stronger."
CHINESE = "北风和太阳正在争论谁更强大，这时来了一个旅行者。"


@pytest.fixture
async def engine() -> AsyncIterator[EspeakEngine]:
    engine = EspeakEngine()
    await engine.warm()
    yield engine
    await engine.aclose()


def voice(path: Path) -> Voice:
    return Voice(path.stem, path)


async def spoken(engine: EspeakEngine, text: str, recording: Path = RECORDINGS[0]) -> FloatSamples:
    async with aclosing(engine.stream(SpeechRequest(text, voice(recording)))) as chunks:
        return np.concatenate([np.empty(0, np.float32), *[chunk.samples async for chunk in chunks]])


def test_a_text_is_cut_where_its_script_changes() -> None:
    text = "2024年，我用Python写代码, ok? Привет! 3月"
    assert list(runs(text)) == [
        *(("cmn", "2024年，我用"), ("en-us", "Python"), ("cmn", "写代码, "), ("en-us", "ok? "), ("ru", "Привет! 3")),
        ("cmn", "月"),
    ]
    assert list(runs("東京タワー and 京都")) == [("ja", "東京タワー "), ("en-us", "and "), ("ja", "京都")]
    assert list(runs("123 …")) == [("en-us", "123 …")]
    assert list(runs("")) == []
    assert list(runs("Ok, தமிழ் ქართული!")) == [("en-us", "Ok, "), ("ta", "தமிழ் "), ("ka", "ქართული!")]
    assert list(runs("তুমি মুখ", "as")) == [("as", "তুমি মুখ")]
    assert list(runs("བོད་ཡིག")) == [("und", "བོད་ཡིག")]
    symbols = "5 µm, 300 K, 1ª, ℓ, x² + 𝐀, ʼn, ʰ, 〆, ℵ"
    assert list(runs(symbols)) == [("en-us", symbols)]


@pytest.mark.parametrize(
    ("recording", "preset"), list(zip(RECORDINGS, PRESETS, strict=True)), ids=lambda item: item.name
)
async def test_each_recording_names_its_preset(recording: Path, preset: object) -> None:
    assert await RecordingVoices(PRESETS, nearest_preset).find(recording) is preset
    assert b"espeak" not in await anyio.Path(recording).read_bytes()


def test_the_eleven_fit_their_names_in_sex_and_register() -> None:
    pitch = {preset.name: preset.median_pitch_hz for preset in PRESETS}
    women = {"nova", "shimmer", "coral", "sage"}
    assert all((pitch[name] > 160) == (name in women) for name in pitch)
    assert min(pitch, key=pitch.__getitem__) == "onyx"
    assert max(pitch, key=pitch.__getitem__) == "nova"
    assert len({preset.timbre for preset in PRESETS}) == 11


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
async def test_choosing_a_recording_changes_the_voice(engine: EspeakEngine, text: str) -> None:
    pitches = []
    for recording, preset in zip(RECORDINGS, PRESETS, strict=True):
        pitch_hz = median_pitch_hz(await spoken(engine, text, recording), engine.info.sample_rate_hz)
        assert pitch_hz is not None
        assert pitch_hz == pytest.approx(preset.median_pitch_hz, rel=0.25)
        pitches.append(pitch_hz)
    ordered = sorted(pitches)
    assert ordered[-1] / ordered[0] > 2.4
    assert sum(high / low > 1.01 for low, high in pairwise(ordered)) >= 8


async def test_a_foreign_recording_gets_the_voice_nearest_in_pitch(tmp_path: Path) -> None:
    for hertz, name in ((75, "onyx"), (99, "alloy"), (183, "sage"), (235, "nova")):
        path = tmp_path / f"{hertz}.wav"
        time_s = np.arange(48000) / 24000
        harmonics = 2 * np.pi * hertz * np.outer(np.arange(1, 6), time_s)
        buzz = to_int16((0.1 * np.sin(harmonics).sum(axis=0)).astype(np.float32))
        path.write_bytes(wav_header(24000, buzz.size) + buzz.tobytes())
        assert (await RecordingVoices(PRESETS, nearest_preset).find(path)).name == name
    assert nearest_preset(None) is PRESETS[0]


async def test_the_name_goes_before_the_content(tmp_path: Path) -> None:
    """A copy under another name is analysed; under a shipped name it is that preset, in whichever order they come."""
    copy, named = tmp_path / "copy.wav", tmp_path / "voice_05.wav"
    for path in (copy, named):
        shutil.copy(RECORDINGS[3], path)
    presets = RecordingVoices(PRESETS, nearest_preset)
    nearest, of_name, again = [(await presets.find(path)).name for path in (copy, named, copy)]
    assert nearest == again != of_name == "nova"


async def test_a_preset_needs_no_recording(engine: EspeakEngine) -> None:
    [nova, onyx] = [next(voice for voice in engine.info.presets if voice.name == name) for name in ("nova", "onyx")]
    assert (nova.title, nova.gender, onyx.gender) == ("Nova", "female", "male")
    pitches = []
    for voice in (nova, onyx):
        request = SpeechRequest(ENGLISH, voice)
        samples = np.concatenate([chunk.samples async for chunk in engine.stream(request)])
        pitches.append(median_pitch_hz(samples, engine.info.sample_rate_hz) or 0.0)
    assert pitches[0] > 2 * pitches[1]


async def test_recordings_that_cannot_be_used_are_named(engine: EspeakEngine, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"RIFF, but not really")
    with pytest.raises(VoiceUnreadable, match=r"bad\.wav"):
        await spoken(engine, "a", tmp_path / "bad.wav")
    with pytest.raises(VoiceFileMissing, match=r"gone\.wav"):
        await spoken(engine, "a", tmp_path / "gone.wav")
    assert (await spoken(engine, "still works")).size


async def test_languages_are_mixed_without_a_break(engine: EspeakEngine) -> None:
    rate_hz = engine.info.sample_rate_hz
    mixed = await spoken(engine, "我用Python写代码")
    alone = [(await spoken(engine, part)).size for part in ("我用", "Python", "写代码")]
    assert mixed.size / rate_hz == pytest.approx(sum(alone) / rate_hz, abs=0.02)
    loud = np.flatnonzero(np.abs(mixed) > 0.006)
    assert np.diff(loud).max() / rate_hz < 0.15, "a pause in the middle of a sentence"


async def test_a_sentence_ends_with_a_pause_before_the_other_language(engine: EspeakEngine) -> None:
    joined = (await spoken(engine, "你好。Hello.")).size
    parts = (await spoken(engine, "你好。")).size + (await spoken(engine, "Hello.")).size
    assert 0.2 < (joined - parts) / engine.info.sample_rate_hz < 0.4


async def test_the_first_chunk_comes_long_before_the_last(engine: EspeakEngine) -> None:
    """Of a text that takes minutes; closing ends it."""
    chunks = engine.stream(SpeechRequest(ENGLISH * 20_000, voice(RECORDINGS[0])))
    await anext(chunks)
    await chunks.aclose()
    assert (await spoken(engine, "and on")).size


def family_of(engine: EspeakEngine) -> list[psutil.Process]:
    child = psutil.Process(engine._process._idle[0]._process.pid)
    return [child, *child.children(recursive=True)]


def has_ended(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


async def test_two_engines_speak_at_once_and_leave_nothing_behind() -> None:
    engines = [EspeakEngine() for _ in range(3)]
    texts = (ENGLISH, CHINESE, "one two three")
    for _ in range(3):
        together = await asyncio.gather(*map(spoken, engines, texts))
        alone = [await spoken(engine, text) for engine, text in zip(engines, texts, strict=True)]
        assert all(map(np.array_equal, together, alone))
    processes = [process for engine in engines for process in family_of(engine)]
    for engine in engines:
        await engine.aclose()
    await asyncio.to_thread(eventually, lambda: all(map(has_ended, processes)))


def test_an_exception_in_the_receiver_ends_the_synthesis() -> None:
    library = EspeakLibrary(*find_files())

    def fail(_: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        library.speak(ENGLISH, "en-us", Timbre(), fail)
    chunks: list[bytes] = []
    library.speak("a", "en-us", Timbre(), chunks.append)
    assert chunks


@pytest.mark.parametrize("text", ["...", "<voice name='x'>tag</voice>", "a" * 3000, "🎉🎉", "\n\n\t", "é" * 500, "̀́"])
async def test_odd_texts_are_survived(engine: EspeakEngine, text: str) -> None:
    await spoken(engine, text)
    assert (await spoken(engine, "fine")).size


def onsets_s(samples: FloatSamples, rate_hz: int) -> FloatSamples:
    """When sound begins after at least 80 ms of silence."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    begins: FloatSamples = loud[np.flatnonzero(np.diff(loud, prepend=-rate_hz) > 0.08 * rate_hz)].astype(np.float32)
    return begins / np.float32(rate_hz)


async def test_marks_are_where_the_words_begin(engine: EspeakEngine) -> None:
    text = "One, nobody; even 2024, и сестра: somewhere."
    chunks = [chunk async for chunk in engine.stream(SpeechRequest(text, voice(RECORDINGS[0])))]
    marks = {mark.character: mark.time_s for chunk in chunks for mark in chunk.marks}
    samples = np.concatenate([chunk.samples for chunk in chunks])
    assert [*marks.values()] == sorted(marks.values())
    assert {text[at:].split(maxsplit=1)[0] for at in marks} >= set(text.split())
    onsets = onsets_s(samples, engine.info.sample_rate_hz)
    for word in ("nobody", "even", "сестра", "somewhere"):
        assert np.abs(onsets - marks[text.index(word if word != "сестра" else "и")]).min() < 0.04, word


async def test_a_word_ends_before_the_pause_behind_it(engine: EspeakEngine) -> None:
    text = "Wait here. [pause 5s] Go on now."
    async with aclosing(perform(engine, SpeechRequest(text, voice(RECORDINGS[0])))) as found:
        chunks = [chunk async for chunk in found]
    samples = np.concatenate([chunk.samples for chunk in chunks])
    marks = [mark for chunk in chunks for mark in chunk.marks]
    here = Passage(text, 0.0, samples.size / engine.info.sample_rate_hz, marks).words()[1]
    loud = np.flatnonzero(np.abs(samples) > 0.01) / engine.info.sample_rate_hz
    assert here.end_s == pytest.approx(loud[loud < 4][-1], abs=0.1)


async def test_words_behind_a_number_that_is_read_out_have_their_marks(engine: EspeakEngine) -> None:
    text = "气温-5℃，增长5%~10%，2024-05-06开会"
    async with aclosing(engine.stream(SpeechRequest(text, voice(RECORDINGS[0])))) as chunks:
        marks = [mark async for chunk in chunks for mark in chunk.marks]
    characters = [mark.character for mark in marks]
    assert {text.index(word) for word in ("-5℃", "增", "5%", "2024", "开")} <= set(characters)
    assert characters == sorted(set(characters))
    assert [mark.time_s for mark in marks] == sorted(mark.time_s for mark in marks)


async def test_phonemes_and_languages_are_heard(engine: EspeakEngine) -> None:
    async def said(text: str, **options: Any) -> FloatSamples:
        request = SpeechRequest(text, voice(RECORDINGS[0]), **options)
        return np.concatenate([chunk.samples async for chunk in engine.stream(request)])

    cat = (Pronunciation(4, 5, "kæt"),)
    assert np.array_equal(await said("The x [[ran.", pronunciations=cat), await said("The cat [ ran."))
    assert np.array_equal(await said("The x.", pronunciations=(Pronunciation(4, 5, "ǃ"),)), await said("The x."))
    german = await said("Guten Tag, 21.", language="de-AT")
    assert not np.array_equal(german, await said("Guten Tag, 21."))
    assert np.array_equal(german, await said("Guten Tag, 21.", language="DE"))
    assert np.array_equal(await said("Tag.", language="tlh"), await said("Tag."))
    assert np.array_equal(await said("வணக்கம்"), await said("வணக்கம்", language="ta"))
    assert np.abs(await said("བོད་ཡིག")).max() > 0.01
    assert list(runs("Да, ja! нет", "uk")) == [("uk", "Да, "), ("en-us", "ja! "), ("uk", "нет")]


def test_every_language_that_is_listed_can_be_chosen() -> None:
    library = EspeakLibrary(*find_files())
    languages = find_languages(find_files()[1])
    assert {"de", "pt-br", "yue"} <= set(languages)
    for language in (*languages[::8], *ALIASES.values()):
        library.phonemes("1", language)
