"""IndexTTS 2.0 and 2.5 behind every route, with tiny checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from streaming_server.audio.decode import decode_native
from tests.engines.indextts2.tiny import make_checkpoint
from tests.support.process import ServerProcess, server_process
from tests.support.server import eventually

TEXT = "你好，世界。Hello world, this is a test. 今天天气很好，我们去公园。"
RATE_HZ = 22_050
SERVE = (sys.executable, "-m", "streaming_server.cli", "serve")
VECTOR = [0.8, 0, 0, 0, 0, 0, 0.2, 0]
METHODS: dict[str, dict[str, Any]] = {
    "voice": {"emo_control_method": 0},
    "recording": {"emo_control_method": 1, "emo_ref_path": "voice_05.wav", "emo_weight": 0.65},
    "vector": {"emo_control_method": 2, "emo_vec": VECTOR},
    "drawn": {"emo_control_method": 2, "emo_vec": VECTOR, "emo_random": True},
    "description": {"emo_control_method": 3, "emo_text": "难过，孤独"},
}


TASK_METHODS: dict[str, dict[str, Any]] = {
    "voice": {},
    "recording": {"emo_control_method": 1, "emo_audio_id": "voice_05", "emo_weight": 0.65},
    "vector": {"emo_control_method": 2, "emo_vector": VECTOR, "emo_random": True},
    "description": {"emo_control_method": 3, "emo_text": "难过，孤独"},
}
WORKFLOW_METHODS: dict[str, dict[str, Any]] = {
    "voice": {},
    "recording": {"emotion_reference": "voice_05"},
    "vector": {"emotion_vector": VECTOR, "use_random": True},
    "description": {"emotion_text": "难过，孤独"},
}
BOTH = pytest.mark.parametrize("version", ["2.0", "2.5"])


@dataclass(frozen=True)
class Served:
    folder: Path
    server: ServerProcess
    client: httpx.Client


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Served]]:
    """The server of a version, started when it is first asked for."""
    with ExitStack() as stack:

        @cache
        def start(version: str) -> Served:
            folder = make_checkpoint(tmp_path_factory.mktemp("indextts2"), version)
            server = stack.enter_context(server_process(*SERVE, "--model_dir", str(folder), INDEXTTS2_STEPS="2"))
            return Served(folder, server, stack.enter_context(httpx.Client(base_url=server.url, timeout=180)))

        yield start


@pytest.fixture
def client(serve: Callable[[str], Served], version: str) -> httpx.Client:
    return serve(version).client


@pytest.fixture
def version() -> str:
    return "2.0"


@pytest.mark.slow
@BOTH
def test_model_info_tells_what_is_loaded(serve: Callable[[str], Served], client: httpx.Client, version: str) -> None:
    folder = serve(version).folder
    info = client.get("/model_info").json()
    assert (info["engine"], info["model_version"], info["sample_rate"]) == ("indextts", f"{version}.0", RATE_HZ)
    assert (info["device"], info["is_fp16"], info["model_dir"]) == ("cpu", False, str(folder))
    capabilities = info["capabilities"]
    assert capabilities["speed"] is (version == "2.5")
    assert all(capabilities[f"emotion_{kind}"] for kind in ("control", "vector", "text", "reference", "random"))


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_each_emotion_method_gives_a_file(client: httpx.Client, method: str, tmp_path: Path) -> None:
    body = {"text": TEXT, "spk_audio_path": "voice_01.wav", **METHODS[method]}
    response = client.post("/tts_url", json=body).raise_for_status()
    (tmp_path / "a.wav").write_bytes(response.content)
    samples, rate_hz = decode_native(tmp_path / "a.wav")
    assert rate_hz == RATE_HZ
    assert samples.size > RATE_HZ


@BOTH
@pytest.mark.parametrize("method", TASK_METHODS)
def test_each_emotion_method_of_a_task(client: httpx.Client, method: str, tmp_path: Path) -> None:
    body = {"text": "你好，世界。", "prompt_audio_id": "voice_01", **TASK_METHODS[method]}
    task_id = client.post("/api/v1/tts", json=body).raise_for_status().json()["task_id"]

    def task() -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/api/v1/task/{task_id}").json()
        return found

    eventually(lambda: task()["status"] in {"completed", "failed"}, within_s=180)
    assert task()["status"] == "completed", task()["message"]
    (tmp_path / "a.wav").write_bytes(client.get(f"/api/v1/audio/{task_id}").raise_for_status().content)
    assert decode_native(tmp_path / "a.wav")[1] == RATE_HZ


@BOTH
@pytest.mark.parametrize("method", WORKFLOW_METHODS)
def test_each_emotion_method_of_a_workflow(client: httpx.Client, version: str, method: str) -> None:
    config = {"text": "你好，世界。", "output_path": f"/share/{method}.wav", **WORKFLOW_METHODS[method]}
    chain = {"workflow_chain": ["indextts.generate_speech"], "indextts_config": config}
    result = client.post("/v1/workflows", json={"workflow_config": chain}).raise_for_status().json()
    assert (result["status"], result["sample_rate"]) == ("success", RATE_HZ)
    model = {"model_type": "IndexTTS2", "model_version": f"{version}.0", "device": "cpu"}
    assert result["model_info"] == model
    assert result["parameters"].get("emotion_text_by") == ("words" if method == "description" else None)
    asked = client.post("/v1/workflows", json={"workflow_config": {"workflow_chain": ["indextts.get_model_info"]}})
    told = asked.json()["model_info"]
    assert {key: told[key] for key in model} == model
    assert told["capabilities"]["emotion_control"] is True


@BOTH
def test_the_higgs_dialect_plays_a_dialogue(client: httpx.Client) -> None:
    body = {"text": "[SPEAKER0] 你好。 [SPEAKER1] Hello.", "ref_audio": "voice_01,voice_05", "seed": 3}
    answer = client.post("/generate", json=body).raise_for_status().json()
    assert (answer["success"], answer["sampling_rate"]) == (True, 24_000)
    assert answer["duration"] > 0.2


def test_instructions_are_an_emotion(serve: Callable[[str], Served], client: httpx.Client) -> None:
    body = {"model": "tts-1", "input": TEXT, "voice": "alloy", "response_format": "pcm", "instructions": "very sad"}
    assert len(client.post("/v1/audio/speech", json=body).raise_for_status().content) > 24_000 * 2
    eventually(lambda: any("converted by the words" in line for line in list(serve("2.0").server.log)))


@pytest.mark.parametrize("granularity", ["token", "sentence", None])
def test_streams_are_the_same_again_with_their_seed(client: httpx.Client, granularity: str | None) -> None:
    def samples(seed: int) -> bytes:
        body: dict[str, Any] = {"text": "你好，世界。", "seed": seed}
        body |= {"stream_granularity": granularity} if granularity else {}
        response = client.post("/synthesize_stream", json=body).raise_for_status()
        assert response.headers["X-Sample-Rate"] == str(RATE_HZ)
        return response.content

    assert samples(5) == samples(5) != samples(6)


@BOTH
@pytest.mark.parametrize("path", ["/synthesize_stream_opus", "/synthesize_stream"])
def test_a_chunk_leaves_before_the_last_code_is_decoded(client: httpx.Client, path: str) -> None:
    body = {"text": TEXT * 400, "seed": 1, "stream_granularity": "token"}  # takes minutes, and is broken off
    with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        pieces = response.iter_bytes()  # the connection is closed when nothing refers to this any more
        next(pieces)
        # The slot is held exactly as long as the model decodes.
        assert client.get("/opus_queue_status").json()["is_processing"] is True


@pytest.mark.parametrize("fast", [False, True])
def test_whole_files(client: httpx.Client, fast: bool, tmp_path: Path) -> None:
    body = {"text": TEXT, "use_fast_inference": fast, "sentences_bucket_max_size": 3, "num_beams": 2}
    (tmp_path / "a.wav").write_bytes(client.post("/synthesize", json=body).raise_for_status().content)
    assert decode_native(tmp_path / "a.wav")[1] == RATE_HZ


@BOTH
def test_speed_changes_the_tempo(client: httpx.Client) -> None:
    def seconds(speed: float) -> float:
        body = {"model": "x", "input": "Hello world.", "response_format": "pcm", "speed": speed}
        lengths = [len(client.post("/v1/audio/speech", json=body).raise_for_status().content) for _ in range(3)]
        return sum(lengths) / len(lengths) / 2 / 24_000

    assert seconds(0.5) > 1.5 * seconds(2.0)


def test_another_voice_is_another_voice(client: httpx.Client) -> None:
    def samples(index: int) -> bytes:
        body = {"text": "你好。", "seed": 5, "reference_audio_index": index}
        return client.post("/synthesize_stream", json=body).raise_for_status().content

    assert samples(0) == samples(0) != samples(4)


def test_a_client_that_leaves_frees_the_slot(client: httpx.Client) -> None:
    body = {"text": TEXT * 20, "stream_granularity": "token"}
    with client.stream("POST", "/synthesize_stream", json=body) as response:
        next(response.iter_bytes())
    eventually(lambda: not client.get("/opus_queue_status").json()["is_processing"])


def test_a_folder_that_lacks_an_external_model_does_not_start(serve: Callable[[str], Served], tmp_path: Path) -> None:
    folder = serve("2.0").folder
    for each in folder.iterdir():
        if each.name != "hf_cache":
            (tmp_path / each.name).symlink_to(each)
    with (
        pytest.raises(AssertionError, match=r"facebook/w2v-bert-2\.0"),
        server_process(*SERVE, "--model_dir", str(tmp_path)),
    ):
        pass
