"""Voices without a recording: an engine's presets, in every dialect that names voices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from streaming_server.domain import Voice
from streaming_server.engines.base import EngineInfo
from tests.support.fakes import FakeEngine
from tests.support.server import LiveServer, running

PRESETS = (Voice("alloy", is_preset=True, gender="male"), Voice("mika", is_preset=True, gender="female"))


class EngineWithPresets(FakeEngine):
    @property
    def info(self) -> EngineInfo:
        return replace(super().info, presets=PRESETS)

    def spoken(self) -> list[str]:
        """Names of the voices that were asked for, since the last call."""
        names = [request.voice.name for request in self.requests]
        self.requests.clear()
        return names


ENGINE = EngineWithPresets()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server without any recording."""
    empty = tmp_path_factory.mktemp("empty")
    with running(ENGINE, reference_audio_dir=empty, voice_prompts_dir=empty) as live:
        yield live


@pytest.mark.parametrize("voice", ["alloy", "mika"])
def test_openai_lists_and_speaks_them(server: LiveServer, voice: str) -> None:
    assert [listed["id"] for listed in server.get("/v1/audio/voices").json()["voices"]] == ["alloy", "mika"]
    body = {"model": "tts-1", "input": "Hello.", "voice": voice, "response_format": "pcm"}
    assert server.post("/v1/audio/speech", body).status_code == 200
    assert ENGINE.spoken() == [voice]


def test_higgs_and_the_earlier_forms_speak_them(server: LiveServer) -> None:
    assert server.post("/generate", {"text": "Hello.", "ref_audio": "mika"}).json()["success"]
    assert server.post("/tts", {"text": "Hello.", "character": "mika"}).status_code == 200
    assert ENGINE.spoken() == ["mika", "mika"]


def test_tasks_and_workflows_speak_them(server: LiveServer) -> None:
    assert server.post("/api/v1/tts/sync", {"text": "Hello.", "prompt_audio_id": "mika"}).status_code == 200
    for name in ("mika", "female_01", "default"):
        config = {"text": "Hello.", "output_path": "a.wav", "reference_audio": name}
        chain = {"workflow_chain": ["indextts.generate_speech"], "indextts_config": config}
        assert server.post("/v1/workflows", {"workflow_config": chain}).json()["status"] == "success"
    assert ENGINE.spoken() == ["mika", "mika", "mika", "alloy"]


def test_the_native_index_counts_recordings_alone(server: LiveServer) -> None:
    assert server.get("/reference_audios").json() == {"reference_audios": [], "total_count": 0}
    refused = server.post("/synthesize", {"text": "Hello.", "reference_audio_index": 0})
    assert (refused.status_code, refused.json()["detail"]) == (400, "参考音频序号无效: 0. 参考音频目录为空")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/audio/speech", {"model": "tts-1", "input": "Hello.", "voice": "nobody"}),
        ("/api/v1/tts", {"text": "Hello.", "prompt_audio_id": "nobody"}),
        ("/generate", {"text": "Hello.", "ref_audio": "nobody"}),
    ],
)
def test_an_unknown_voice_names_them(server: LiveServer, path: str, body: dict[str, str]) -> None:
    refused = server.post(path, body)
    assert 400 <= refused.status_code < 500
    assert "alloy, mika" in refused.text


def test_a_recording_goes_before_a_preset_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "mika.wav").write_bytes(b"RIFF")
    engine = EngineWithPresets()
    with running(engine, reference_audio_dir=tmp_path) as live:
        body = {"model": "tts-1", "input": "Hello.", "voice": "mika", "response_format": "pcm"}
        assert live.post("/v1/audio/speech", body).status_code == 200
    assert [request.voice.index for request in engine.requests] == [0]
