"""The engine from request to audio, on a tiny checkpoint."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from streaming_server.audio.decode import decode_mono
from streaming_server.domain import Capability, Emotion, FloatSamples, Generation, SpeechRequest, Voice
from streaming_server.engines.higgs.codes import Undelayed
from streaming_server.engines.higgs.prompt import PromptWriter
from streaming_server.engines.registry import create_engine
from streaming_server.engines.torch import model_engine
from streaming_server.errors import EngineFailed, EngineNotReady, EngineUnavailable, VoiceFileMissing, VoiceUnreadable
from streaming_server.speech.dialogue import Cutting, script_of

if TYPE_CHECKING:  # every worker collects this module; few run its tests, for which alone transformers is imported
    from streaming_server.engines.higgs.engine import HiggsEngine

ROOT = Path(__file__).parents[3]
BELINDA = Voice("belinda", ROOT / "examples" / "voice_prompts" / "belinda.wav")
NOVA = Voice("voice_05", ROOT / "reference_audios" / "voice_05.wav", 4)
GENERATION = Generation(seed=3, max_mel_tokens=40, temperature=0.9, top_k=60)
REQUEST = SpeechRequest("Hello there.", BELINDA, GENERATION)
Paths = tuple[Path, Path]


def create(checkpoint: Paths, **settings: Any) -> HiggsEngine:
    from streaming_server.engines.higgs.engine import HiggsEngine

    paths = {"model_path": str(checkpoint[0]), "audio_tokenizer_path": str(checkpoint[1])}
    return HiggsEngine(**({**paths, "device": "cpu"} | settings))


def with_engine(checkpoint: Paths, use: Callable[[HiggsEngine], Awaitable[Any]], **settings: Any) -> Any:
    async def main() -> Any:
        engine = create(checkpoint, **settings)
        try:
            await engine.warm()
            return await use(engine)
        finally:
            await engine.aclose()

    return asyncio.run(main())


async def spoken(engine: HiggsEngine, request: SpeechRequest = REQUEST) -> list[FloatSamples]:
    async with aclosing(engine.stream(request)) as chunks:
        return [chunk.samples async for chunk in chunks]


def whole(checkpoint: Paths, *requests: SpeechRequest) -> list[FloatSamples]:
    async def use(engine: HiggsEngine) -> list[FloatSamples]:
        return [np.concatenate(await spoken(engine, request)) for request in requests]

    found: list[FloatSamples] = with_engine(checkpoint, use)
    return found


def test_a_request_becomes_audio_in_pieces_that_grow(checkpoint: Paths) -> None:
    chunks = with_engine(checkpoint, spoken)
    assert [len(chunk) // 960 for chunk in chunks[:3]] == [2, 4, 8]
    audio = np.concatenate(chunks)
    assert audio.dtype == np.float32
    assert 0.01 < np.abs(audio).max() <= 1.0


def test_the_same_seed_gives_the_same_audio(checkpoint: Paths) -> None:
    other = replace(REQUEST, generation=replace(GENERATION, seed=4))
    none = replace(REQUEST, generation=replace(GENERATION, seed=None))
    first, again, another, free, free_again = whole(checkpoint, REQUEST, REQUEST, other, none, none)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, another)
    assert not np.array_equal(free, free_again)


def test_voice_scene_and_transcript_are_heard(checkpoint: Paths, tmp_path: Path) -> None:
    shutil.copy(BELINDA.path, tmp_path / "mute.wav")
    requests = [
        REQUEST,
        replace(REQUEST, voice=NOVA),
        replace(REQUEST, scene="A cathedral."),
        replace(REQUEST, own_voices=True),
        replace(REQUEST, voice=Voice("mute", tmp_path / "mute.wav")),
    ]
    sounds = whole(checkpoint, *requests)
    assert len({sound.tobytes() for sound in sounds}) == len(requests)


def test_a_voice_is_listened_to_once_and_anew_when_its_file_changes(
    checkpoint: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = decode_mono

    def counting(path: Path, *arguments: Any) -> FloatSamples:
        decoded.append(path.name)
        return decode(path, *arguments)

    monkeypatch.setattr("streaming_server.engines.higgs.engine.decode_mono", counting)
    shutil.copy(BELINDA.path, tmp_path / "v.wav")
    request = replace(REQUEST, voice=Voice("v", tmp_path / "v.wav"))

    async def use(engine: HiggsEngine) -> None:
        await spoken(engine, request)
        await spoken(engine, request)
        assert decoded == ["v.wav"]
        shutil.copy(NOVA.path, tmp_path / "v.wav")
        await spoken(engine, request)
        assert decoded == ["v.wav"] * 2

    with_engine(checkpoint, use)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("do_sample", [True, False])
def test_logits_that_are_not_finite_end_that_request_alone(checkpoint: Paths, value: float, do_sample: bool) -> None:
    request = replace(REQUEST, generation=replace(GENERATION, do_sample=do_sample))

    def poison(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([7]), value)

    async def use(engine: HiggsEngine) -> None:
        before = await spoken(engine, request)
        assert engine._loaded is not None
        hook = engine._loaded._model.audio_lm_head.register_forward_hook(poison)
        with pytest.raises(EngineFailed, match="not finite"):
            await spoken(engine, request)
        hook.remove()
        assert np.array_equal(np.concatenate(await spoken(engine, request)), np.concatenate(before))

    with_engine(checkpoint, use)


def test_pieces_follow_one_another_and_hear_those_before(checkpoint: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[list[str]] = []
    write = PromptWriter.write

    def noting(self: Any, piece: Any, speakers: Any, voices: Any, scene: str, before: Any) -> Any:
        heard.append([said.text for said in before])
        return write(self, piece, speakers, voices, scene, before)

    monkeypatch.setattr(PromptWriter, "write", noting)
    text = "[SPEAKER0] a [SPEAKER1] b [SPEAKER0] c [SPEAKER1] d"
    script = script_of(text, [BELINDA, NOVA], Cutting("speaker"))

    async def use(engine: HiggsEngine) -> None:
        for context in (None, 1, 0):
            generation = replace(GENERATION, max_mel_tokens=16, context_pieces=context)
            heard.clear()
            assert await spoken(engine, replace(REQUEST, script=script, generation=generation))
            a, b, c = "[SPEAKER0] a", "[SPEAKER1] b", "[SPEAKER0] c"
            assert (
                heard
                == {
                    None: [[], [a], [a, b], [a, b, c]],
                    1: [[], [a], [b], [c]],
                    0: [[], [], [], []],
                }[context]
            )

    with_engine(checkpoint, use)


def test_the_first_chunk_leaves_before_the_last_frame_is_drawn(
    checkpoint: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[int] = []
    heard = threading.Event()
    heard.set()
    push = Undelayed.push

    def counting(self: Any, frame: Any) -> Any:
        frames.append(1)
        if len(frames) == 30:
            assert heard.wait(180)
        return push(self, frame)

    monkeypatch.setattr(Undelayed, "push", counting)

    async def use(engine: HiggsEngine) -> None:
        frames.clear()
        heard.clear()
        request = replace(REQUEST, generation=replace(GENERATION, max_mel_tokens=120))
        async with aclosing(engine.stream(request)) as chunks:
            await anext(chunks)
            at_first = len(frames)
            heard.set()
            async for _ in chunks:
                pass
        # One of the beginning, seven of delay, ten of context, two that are heard; and what was drawn on the way here.
        assert 20 <= at_first <= 30
        assert len(frames) > 40

    with_engine(checkpoint, use)


def test_closing_a_stream_stops_the_drawing_at_the_next_frame(
    checkpoint: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[int] = []
    reached, opened = threading.Event(), threading.Event()
    opened.set()
    push = Undelayed.push

    def counting(self: Any, frame: Any) -> Any:
        frames.append(1)
        if len(frames) == 100:
            reached.set()
            assert opened.wait(180)
        return push(self, frame)

    monkeypatch.setattr(Undelayed, "push", counting)

    async def use(engine: HiggsEngine) -> None:
        frames.clear()
        reached.clear()
        opened.clear()
        # With this text and temperature the tiny model makes about 400 frames.
        generation = replace(GENERATION, max_mel_tokens=600, temperature=0.3)
        request = replace(REQUEST, text="A longer text with words", generation=generation)
        chunks = engine.stream(request)
        await anext(chunks)
        assert await asyncio.to_thread(reached.wait, 180)
        closing = asyncio.create_task(chunks.aclose())
        await asyncio.sleep(0)
        opened.set()
        await closing
        so_far = len(frames)
        await asyncio.sleep(0.2)
        assert len(frames) == so_far <= 101
        assert await spoken(engine)  # the engine has taken no harm

    with_engine(checkpoint, use)


@pytest.mark.parametrize("content", [None, b"no audio", b""])
def test_a_voice_that_cannot_be_heard(checkpoint: Paths, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.wav"
    if content is not None:
        path.write_bytes(content)

    async def use(engine: HiggsEngine) -> None:
        error = VoiceFileMissing if content is None else VoiceUnreadable
        with pytest.raises(error, match=r"other\.wav"):
            await spoken(engine, replace(REQUEST, voice=Voice("other", path)))
        assert await spoken(engine)

    with_engine(checkpoint, use)


def test_the_info_tells_the_truth(checkpoint: Paths) -> None:
    engine = create(checkpoint, precision="bf16")
    info = engine.info
    assert (info.name, info.sample_rate_hz, info.device, info.is_fp16) == ("higgs", 24000, "cpu", False)
    assert info.model_dir == str(checkpoint[0])
    assert info.capabilities >= {
        Capability.DIALOGUE,
        Capability.SCENE,
        Capability.SMART_VOICE,
        Capability.VOICE_CLONING,
        Capability.SEED,
    }
    with pytest.raises(EngineNotReady):
        asyncio.run(spoken(engine))
    asyncio.run(engine.aclose())


def test_what_is_ignored_and_what_was_cut_off_is_logged(checkpoint: Paths, caplog: pytest.LogCaptureFixture) -> None:
    whole(checkpoint, replace(REQUEST, emotion=Emotion(text="sad"), generation=replace(GENERATION, max_mel_tokens=20)))
    messages = " ".join(record.message for record in caplog.records)
    assert "emotion ignored: HiggsAudio takes the emotion from the scene and the voice" in messages
    assert "audio truncated: a piece reached the limit of 20 codes" in messages


def test_a_code_is_a_frame_at_any_temperature(checkpoint: Paths) -> None:
    some = (replace(GENERATION, max_mel_tokens=1), replace(GENERATION, max_mel_tokens=3, temperature=1e39))
    samples, more = whole(checkpoint, *(replace(REQUEST, generation=generation) for generation in some))
    assert 0 < samples.size == more.size / 3


def test_half_precision_speaks(checkpoint: Paths) -> None:
    audio = np.concatenate(with_engine(checkpoint, spoken, precision="bf16"))
    assert audio.size
    assert np.isfinite(audio).all()


def test_a_folder_is_found_by_auto(checkpoint: Paths, tmp_path: Path) -> None:
    from streaming_server.engines.higgs.engine import HiggsEngine

    model, codec = map(str, checkpoint)
    options = {"MODEL_PATH": model, "AUDIO_TOKENIZER_PATH": codec, "DEVICE": "cpu"}
    engine = create_engine("auto", options | {"MODEL_DIR": str(tmp_path)})
    assert isinstance(engine, HiggsEngine)
    asyncio.run(engine.aclose())


def changed(folder: Path, source: Path, **values: Any) -> str:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return str(folder)


def test_checkpoints_that_cannot_be_used_say_why(checkpoint: Paths, tmp_path: Path) -> None:
    model, codec = checkpoint
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for settings, sentence in (
        ({"model_path": str(tmp_path / "empty")}, "config.json is missing in"),
        ({"model_path": str(tmp_path / "none" / "here")}, "neither a folder nor a repository"),
        ({"model_path": "nonsense"}, "neither a folder nor a repository"),
        ({"model_path": str(tmp_path / "broken")}, "not a valid configuration"),
        ({"model_path": str(codec)}, "is a model of type higgs_audio_v2_tokenizer"),
        ({"audio_tokenizer_path": str(model)}, "is a model of type higgs_audio_v2;"),
        (
            {"model_path": changed(tmp_path / "small", model, codebook_size=1024)},
            "does not include the begin and end codes",
        ),
        ({"precision": "fp16"}, "fp16 requires a GPU"),
        ({"device": "meta-nonsense"}, "is not available"),
    ):
        with pytest.raises(EngineUnavailable, match=sentence):
            create(checkpoint, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_a_device_that_is_not_there(checkpoint: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_engine, "unused_gpu", lambda: "its driver is too old")
    with pytest.raises(EngineUnavailable, match="the device cuda is not available: its driver is too old"):
        create(checkpoint, device="cuda")


@pytest.mark.slow  # the hub's client tries more than once
def test_a_name_on_the_hub_without_a_network_is_a_sentence(checkpoint: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the hub's client tries six times, with pauses of 23 s in all
    with pytest.raises(EngineUnavailable, match="cannot be downloaded from the Hugging Face hub") as caught:
        create(checkpoint, model_path="nobody-at-all/no-such-model-3e1f")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["weights", "tokenizer", "truncated", "template"])
def test_a_checkpoint_that_lacks_something_never_gets_ready(checkpoint: Paths, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint[0], folder)
    weights = folder / "model.safetensors"
    if what == "weights":
        changed(tmp_path / "deeper", checkpoint[0], num_hidden_layers=3)
        folder = tmp_path / "deeper"
    elif what == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif what == "template":
        (folder / "chat_template.jinja").unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:5000])

    async def warm() -> None:
        engine = create(checkpoint, model_path=str(folder))
        try:
            with pytest.raises(EngineUnavailable) as caught:
                await engine.warm()
            assert str(folder) in str(caught.value)
            assert "\n" not in str(caught.value)
        finally:
            await engine.aclose()

    asyncio.run(warm())
