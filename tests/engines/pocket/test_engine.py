"""The pocket engine over the package's own code, with a tiny model of random weights."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from streaming_server.domain import Capability, FloatSamples, Generation, SpeechRequest, Voice
from streaming_server.downloads import MODELS
from streaming_server.engines import registry
from streaming_server.engines.base import Engine
from streaming_server.engines.pocket.engine import PocketEngine, _parts
from streaming_server.engines.pocket.folder import CODES
from streaming_server.errors import (
    EngineFailed,
    EngineUnavailable,
    InvalidRequest,
    VoiceFileMissing,
    VoiceUnknown,
    VoiceUnreadable,
)
from tests.engines.pocket.tiny import FRAME, make_folder
from tests.support.server import RECORDINGS, running

TEXT = "Hello there."
FIRST = Voice("voice_01", RECORDINGS / "voice_01.wav")
SECOND = Voice("voice_02", RECORDINGS / "voice_02.wav")
DEADLINE_S = 180


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """The package sets torch to one thread when it is imported."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pocket")).parents[1]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[PocketEngine]:
    with warmed(folder) as engine:
        yield engine


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PocketEngine]:
    """Each sentence lasts as long as the package allows."""
    with warmed(make_folder(tmp_path_factory.mktemp("endless"), ends=False).parents[1]) as engine:
        yield engine


@contextmanager
def warmed(folder: Path, language: str = "auto") -> Iterator[PocketEngine]:
    engine = PocketEngine(model_dir=folder, language=language)
    try:
        asyncio.run(engine.warm())
        yield engine
    finally:
        asyncio.run(engine.aclose())


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may damage."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


def request(text: str = TEXT, voice: Voice = FIRST, seed: int | None = 1) -> SpeechRequest:
    return SpeechRequest(text, voice, generation=Generation(seed=seed))


def frames(engine: Engine, request: SpeechRequest) -> list[FloatSamples]:
    async def collect() -> list[FloatSamples]:
        async with aclosing(engine.stream(request)) as chunks:
            return [chunk.samples async for chunk in chunks]

    return asyncio.run(collect())


def speak(engine: Engine, request: SpeechRequest) -> FloatSamples:
    return np.concatenate(frames(engine, request))


class Gate:
    """Counts the calls of a module of the model; from one of them on they wait until the gate is opened."""

    def __init__(self, module: torch.nn.Module, closed_from: int) -> None:
        self.calls = 0
        self.reached = threading.Event()
        self.opened = threading.Event()
        self._closed_from = closed_from
        self._hook = module.register_forward_pre_hook(self._call)

    def _call(self, *_: object) -> None:
        self.calls += 1
        if self.calls >= self._closed_from:
            self.reached.set()
            assert self.opened.wait(DEADLINE_S)

    def remove(self) -> None:
        self._hook.remove()


@pytest.fixture
def gate() -> Iterator[Callable[[PocketEngine, str, int], Gate]]:
    gates: list[Gate] = []

    def make(engine: PocketEngine, module: str, closed_from: int) -> Gate:
        assert engine._model is not None
        gates.append(Gate(engine._model._model.get_submodule(module), closed_from))
        return gates[-1]

    yield make
    for made in gates:
        made.remove()


NEVER = 1 << 30


def test_frames_of_80_ms_come_while_the_model_computes(
    endless: PocketEngine, gate: Callable[[PocketEngine, str, int], Gate]
) -> None:
    steps = gate(endless, "flow_lm.flow_net", 6)

    async def main() -> None:
        async with aclosing(endless.stream(request())) as chunks:
            for _ in range(3):  # two steps are those of the prompts
                assert (await asyncio.wait_for(anext(chunks), DEADLINE_S)).samples.size == FRAME
            assert steps.reached.wait(DEADLINE_S)
            steps.opened.set()

    asyncio.run(main())
    assert Capability.TOKEN_STREAMING in endless.info.capabilities


def test_a_client_that_leaves_ends_the_model_within_a_frame(
    endless: PocketEngine, gate: Callable[[PocketEngine, str, int], Gate]
) -> None:
    whole = speak(endless, request())
    steps = gate(endless, "flow_lm.flow_net", 6)

    async def main() -> None:
        chunks = endless.stream(request(TEXT * 100))
        await anext(chunks)
        assert await asyncio.to_thread(steps.reached.wait, DEADLINE_S)
        closing = asyncio.create_task(chunks.aclose())
        await asyncio.sleep(0)  # the task runs until it waits for the engine
        assert not closing.done()
        steps.opened.set()
        await closing

    asyncio.run(main())
    assert steps.calls == 6
    steps.remove()
    assert np.array_equal(speak(endless, request()), whole)  # nothing of the first request draws noise any more


def test_frames_that_wait_for_the_decoder_are_dropped(
    endless: PocketEngine, gate: Callable[[PocketEngine, str, int], Gate]
) -> None:
    decoded = gate(endless, "mimi.quantizer", 2)
    steps = gate(endless, "flow_lm.flow_net", 20)
    steps.opened.set()

    async def main() -> None:
        chunks = endless.stream(request())
        await anext(chunks)
        assert await asyncio.to_thread(steps.reached.wait, DEADLINE_S)
        closing = asyncio.create_task(chunks.aclose())
        await asyncio.sleep(0)
        decoded.opened.set()
        await closing

    asyncio.run(main())
    assert decoded.calls == 2


def test_a_client_that_leaves_ends_the_analysis_of_its_voice(
    engine: PocketEngine, gate: Callable[[PocketEngine, str, int], Gate], tmp_path: Path
) -> None:
    recording = shutil.copyfile(RECORDINGS / "voice_03.wav", tmp_path / "other.wav")
    analysing, prompted = gate(engine, "mimi.encoder", 1), gate(engine, "flow_lm", NEVER)

    async def main() -> None:
        chunks = engine.stream(request(voice=Voice("other", recording)))
        waiting = asyncio.create_task(anext(chunks))
        assert await asyncio.to_thread(analysing.reached.wait, DEADLINE_S)
        waiting.cancel()
        await asyncio.sleep(0)
        analysing.opened.set()
        await asyncio.wait([waiting])

    asyncio.run(main())
    assert (analysing.calls, prompted.calls) == (1, 0)


def test_a_seed_gives_the_same_samples(engine: PocketEngine) -> None:
    assert Capability.SEED in engine.info.capabilities
    long = TEXT * 30
    once, again = speak(engine, request(long)), speak(engine, request(long))
    assert np.array_equal(once, again)
    others = [speak(engine, request(long, seed=seed)) for seed in (2, None, None)]
    assert not any(np.array_equal(once, other) for other in others)
    assert not np.array_equal(others[1], others[2])


def test_a_recording_is_cloned_once_for_its_content(
    engine: PocketEngine, gate: Callable[[PocketEngine, str, int], Gate], tmp_path: Path
) -> None:
    assert Capability.VOICE_CLONING in engine.info.capabilities
    first = speak(engine, request())
    copy = Voice("copy", shutil.copyfile(FIRST.path, tmp_path / "copy.wav"))
    analysed = gate(engine, "mimi.encoder", NEVER)
    assert np.array_equal(speak(engine, request(voice=copy)), first)
    assert analysed.calls == 0
    assert not np.array_equal(speak(engine, request(voice=SECOND)), first)
    assert analysed.calls <= 1


def test_a_voice_that_cannot_be_used_is_refused(engine: PocketEngine, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not a recording")
    with pytest.raises(VoiceUnreadable, match=r"text\.wav cannot be decoded"):
        speak(engine, request(voice=Voice("text", tmp_path / "text.wav")))
    with pytest.raises(VoiceFileMissing):
        speak(engine, request(voice=Voice("gone", tmp_path / "gone.wav")))
    with pytest.raises(VoiceUnknown, match="nobody"):
        speak(engine, request(voice=Voice("nobody", is_preset=True)))


def test_a_prepared_voice_is_a_preset(copied: Path) -> None:
    from pocket_tts import export_model_state

    embeddings = copied / "languages" / "english" / "embeddings"
    embeddings.mkdir()
    with warmed(copied) as engine:
        cloned = speak(engine, request())
        export_model_state(engine._voices.peek(FIRST.path), embeddings / "alba.safetensors")
    (embeddings / "broken.safetensors").write_bytes(b"short")
    other = {"elsewhere": {"cache": torch.zeros(2, 1, 3, 2, 16)}}
    export_model_state(other, embeddings / "foreign.safetensors")
    with warmed(copied) as engine:
        assert {preset.name: preset.languages for preset in engine.info.presets} == {
            "alba": ("en",),
            "broken": ("en",),
            "foreign": ("en",),
        }
        assert np.array_equal(speak(engine, request(voice=Voice("alba", is_preset=True))), cloned)
        with pytest.raises(EngineFailed, match=r"broken cannot be read from broken\.safetensors"):
            speak(engine, request(voice=Voice("broken", is_preset=True)))
        with pytest.raises(EngineFailed, match=r"foreign\.safetensors belongs to another model"):
            speak(engine, request(voice=Voice("foreign", is_preset=True)))


@pytest.mark.parametrize(
    "text", ["…", "“ ”", "😀", "1", "a", "Ça va? Ÿ – “Oui.” . . ! ; ª", "x" * 5000, "Wait... what?! " * 9]
)
def test_any_text_in_latin_script_is_spoken(engine: PocketEngine, text: str) -> None:
    samples = speak(engine, request(text))
    assert samples.size
    assert np.isfinite(samples).all()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Shopping list:\n\nEggs\nMilk (1 l)\nBread, butter", ["Shopping list: Eggs. Milk (1 l). Bread, butter."]),
        ("One, two, " * 20, ["One, two, " * 19 + "One, two,"]),
        ("One two\n" + "three four,\n" * 14, ["One two " + "three four, " * 13 + "three four,"]),
        ("hello " * 60, [f"{'hello ' * 24}hello. {'hello ' * 24}hello. {'hello ' * 9}hello."]),
    ],
)
def test_lines_and_long_clauses_end_as_sentences(text: str, parts: list[str]) -> None:
    """The package splits at marks only, and skips words of longer pieces."""
    assert list(_parts(text)) == parts


@pytest.mark.parametrize("text", ["Hello. Привет", "你好", "क"])
def test_another_script_is_refused(engine: PocketEngine, text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot speak.*'english' reads Latin script"):
        speak(engine, request(text))


def test_the_language_is_a_folder(copied: Path) -> None:
    languages = copied / "languages"
    (languages / "english").rename(languages / "french_24l")
    assert PocketEngine(model_dir=copied).info.model_version.endswith(" french_24l")
    make_folder(copied, "czech")
    make_folder(copied)
    chosen = [PocketEngine(model_dir=copied, language=name).info.model_version for name in ("auto", "czech")]
    assert [version.rpartition(" ")[2] for version in chosen] == ["english", "czech"]
    with warmed(copied, "czech") as czech:
        assert speak(czech, request("Привет")).size  # the script of another publisher's model is not known
    assert registry.choose("auto", {"MODEL_DIR": str(copied)}).spec.name == "pocket"
    with pytest.raises(EngineUnavailable, match=r"has no languages/german/model.safetensors \(it has czech, english,"):
        registry.choose("pocket", {"MODEL_DIR": str(copied), "POCKET_LANGUAGE": "german"})


def test_a_missing_file_is_named_with_the_command_that_gets_it(copied: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    with pytest.raises(EngineUnavailable) as caught:
        registry.choose("pocket", {"MODEL_DIR": str(empty)})
    missing = f'MODEL_DIR "{empty}" has no languages/english/model.safetensors'
    assert str(caught.value) == f"{missing}; run: .venv/bin/streaming-server download pocket --dir {empty}"
    with pytest.raises(EngineUnavailable, match="download pocket --variant dutch --dir"):
        PocketEngine(model_dir=empty, language="dutch")
    (copied / "languages" / "english" / "tokenizer.json").unlink()
    with pytest.raises(EngineUnavailable, match=r"has no languages/english/tokenizer\.json; run"):
        registry.choose("auto", {"MODEL_DIR": str(copied)})
    (copied / "languages" / "english").rename(copied / "languages" / "klingon")
    (copied / "languages" / "klingon" / "tokenizer.model").touch()
    (copied / "languages" / "klingon" / "config.yaml").unlink()
    with pytest.raises(EngineUnavailable, match=r"config\.yaml is missing, .* has no language 'klingon'"):
        PocketEngine(model_dir=copied)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.yaml", b"flow_lm: [", "config.yaml is not a configuration of Pocket TTS: while parsing"),
        ("config.yaml", b"- 1", "config.yaml is not a configuration of Pocket TTS: "),
        ("config.yaml", b"flow_lm: {}", "config.yaml is not a configuration of Pocket TTS: .*validation error"),
        ("config.yaml", None, r"model\.safetensors cannot be loaded: |tokenizer\.json cannot be loaded: tokenizer has"),
        ("tokenizer.json", b"{", r"tokenizer\.json cannot be loaded: "),
        ("model.safetensors", b"short", r"model\.safetensors cannot be loaded: "),
    ],
)
def test_a_damaged_file_is_named(copied: Path, name: str, content: bytes | None, sentence: str) -> None:
    file = copied / "languages" / "english" / name
    if content is None:
        file.unlink()  # the package's configuration of that language takes its place
    else:
        file.write_bytes(content)

    async def start() -> None:
        engine = PocketEngine(model_dir=copied)
        try:
            await engine.warm()
        finally:
            await engine.aclose()

    with pytest.raises(EngineUnavailable, match=sentence) as caught:
        asyncio.run(start())
    assert "\n" not in str(caught.value)


def test_nothing_is_downloaded(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> str:
        raise AssertionError("a download")

    monkeypatch.setattr("pocket_tts.utils.utils.hf_hub_download", refused)
    config = copied / "languages" / "english" / "config.yaml"
    config.write_text("weights_path: hf://kyutai/pocket-tts/model.safetensors\n" + config.read_text())
    with warmed(copied) as engine:
        assert engine.info.sample_rate_hz == 24000


def test_what_is_downloaded_is_what_the_package_names() -> None:
    from pocket_tts.utils.config import CONFIGS_DIR, load_config
    from pocket_tts.utils.utils import get_predefined_voice

    variants = MODELS["pocket"].variants
    assert {name.partition("_")[0] for name in variants} == CODES.keys()
    for language, parts in variants.items():
        config = load_config(CONFIGS_DIR / f"{language}.yaml")
        named = [config.weights_path, config.flow_lm.lookup_table.tokenizer_path, get_predefined_voice(language, "*")]
        assert [f"hf://{part.repository}/{part.files[0]}@{part.revision}" for part in parts] == named


def test_a_server_clones_a_recording(folder: Path) -> None:
    with running(PocketEngine(model_dir=folder)) as live:
        info = live.get("/model_info").json()
        assert "pocket" in str(info)

        def speech(voice: str, text: str = TEXT) -> bytes:
            body = {"model": "tts-1", "input": text, "voice": voice, "response_format": "pcm", "seed": 1}
            answer = live.post("/v1/audio/speech", body)
            assert answer.status_code == 200, answer.text
            return answer.content

        assert len(speech("voice_01")) % (2 * FRAME) == 0
        given = "Hello there. [pause 0.5s] 你好"
        for options in ({}, {"stream_format": "sse", "word_timestamps": True}):
            body = {"model": "tts-1", "input": given, "voice": "voice_01"} | options
            refused = live.post("/v1/audio/speech", body)
            assert refused.status_code == 400, refused.text
            error = refused.json()["error"]
            assert error["param"] == "input"
            assert re.match("input has characters .*'你好'.* reads Latin script", error["message"])
        for path, field in [
            ("/synthesize_stream", "text"),
            ("/generate-stream", "text"),
            ("/dev/captioned_speech", "input"),
            ("/v1/text-to-speech/voice_01/with-timestamps", "text"),
            ("/api/v1/tts", "text"),
        ]:
            for text in (given, "[SPEAKER0] Hello there. [SPEAKER0] 你好"):
                body = {field: text, "ref_audio": "voice_01"} if path == "/generate-stream" else {field: text}
                refused = live.post(path, body | ({"prompt_audio_id": "voice_01"} if path == "/api/v1/tts" else {}))
                assert refused.status_code in {400, 422}, f"{path}: {refused.text}"
                assert f"{field} has characters" in refused.text
        asked = live.get("/synthesize_stream_opus", params={"text": given})
        assert asked.json()["detail"][0]["loc"] == ["query", "text"]
