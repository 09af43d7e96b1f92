"""Non-finite numbers in a recording or a model fail only that request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pytest
import torch

from streaming_server.engines.base import Engine
from streaming_server.engines.indextts.engine import IndexTTSEngine
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.indextts2.engine import IndexTTS2Engine
from streaming_server.engines.indextts2.options import IndexTTS2Options
from streaming_server.engines.indextts2.runtime import Runtime as Runtime2
from tests.engines.indextts import tiny
from tests.engines.indextts2 import tiny as tiny2
from tests.support.recordings import float_wav
from tests.support.server import RECORDINGS, LiveServer, running

BODY = {"text": "你好。", "seed": 5, "max_mel_tokens": 12}


def engine_of(version: str, folder: Path) -> Engine:
    if version == "1.5":
        return IndexTTSEngine(model_dir=tiny.make_checkpoint(folder), device="cpu")
    return IndexTTS2Engine(IndexTTS2Options(model_dir=tiny2.make_checkpoint(folder, version), steps=2, device="cpu"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    copyfile(RECORDINGS / "voice_01.wav", folder / "a.wav")
    copyfile(RECORDINGS / "voice_04.wav", folder / "b.wav")
    float_wav(folder / "c.wav", np.nan)
    float_wav(folder / "d.wav", 1e30)
    return folder


@pytest.fixture(scope="module", params=["1.5", "2.0", "2.5"])
def server(request: pytest.FixtureRequest, recordings: Path, tmp_path_factory: Any) -> Iterator[LiveServer]:
    engine = engine_of(request.param, tmp_path_factory.mktemp("model") / "m")
    with running(engine, reference_audio_dir=recordings) as live:
        yield live


def ask(server: LiveServer, voice: int, **body: Any) -> tuple[int, str]:
    answer = server.post("/synthesize_stream", BODY | {"reference_audio_index": voice} | body)
    return answer.status_code, answer.text if answer.status_code >= 400 else ""


def test_a_recording_that_is_not_finite_harms_no_other_request(server: LiveServer) -> None:
    for granularity in ("token", "sentence"):
        for voice in (2, 3):
            status, sentence = ask(server, voice, stream_granularity=granularity)
            assert status >= 400
            assert f"{'cd'[voice - 2]}.wav has samples" in sentence
        assert ask(server, 0, stream_granularity=granularity)[0] == 200


def test_such_an_upload_is_refused(server: LiveServer, recordings: Path) -> None:
    for name in ("c.wav", "d.wav"):
        answer = server.client.post("/api/v1/upload/audio", files={"file": (name, (recordings / name).read_bytes())})
        assert 400 <= answer.status_code < 500
        assert "the recording has samples" in answer.text


def test_a_model_that_overflows_for_a_voice_harms_no_other_request(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "speaker", lambda *_: torch.full((32,), torch.nan))
        patch.setattr(Runtime2, "emo", lambda *_: torch.full((64,), torch.nan))
        status, sentence = ask(server, 1)
    assert status >= 400
    assert "b.wav cannot be analysed" in sentence
    assert ask(server, 1)[0] == ask(server, 0)[0] == 200


def test_a_model_that_overflows_while_decoding_harms_no_other_request(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = server.post("/synthesize_stream", BODY).content
    for runtime in (Runtime, Runtime2):
        monkeypatch.setattr(runtime, "_prompt" if runtime is Runtime else "prefix", poisoned(runtime))
    assert ask(server, 0)[0] >= 400
    assert ask(server, 0, stream_granularity="sentence", num_beams=2)[0] >= 400
    monkeypatch.undo()
    assert server.post("/synthesize_stream", BODY).content == expected


def poisoned(runtime: Any) -> Any:
    compute = runtime._prompt if runtime is Runtime else runtime.prefix
    return lambda *arguments, **options: compute(*arguments, **options) * torch.nan
