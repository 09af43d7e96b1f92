"""The workflow contract, without a broker: chains through the server's own runner."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from streaming_server.audio.decode import decode_native
from streaming_server.domain import Capability, Emotion
from streaming_server.errors import EngineFailed, InvalidRequest, VoiceUnknown
from tests.support.fakes import FakeEngine, tone
from tests.support.process import server_process
from tests.support.scripted import SCRIPTED, until
from tests.support.server import RECORDINGS, LiveServer, RawClient, by_text, eventually, running, speaking

SPEECH, HEALTH = "indextts.generate_speech", "indextts.health_check"
INFO, PRESETS = "indextts.get_model_info", "indextts.list_voice_presets"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def body_of(chain: list[str], **config: Any) -> dict[str, Any]:
    named = {"text": "Hello.", "output_path": "/share/out/a.wav"} | config
    workflow = {"workflow_chain": chain} | ({"indextts_config": named} if SPEECH in chain else {})
    return {"video_path": "/app/videos/example.mp4", "workflow_config": workflow}


def post(live: LiveServer, body: dict[str, Any]) -> httpx.Response:
    # As ASCII: what no UTF-8 can hold comes as an escape.
    return live.client.post("/v1/workflows", content=json.dumps(body), headers={"Content-Type": "application/json"})


def run(live: LiveServer, *chain: str, **config: Any) -> httpx.Response:
    return post(live, body_of(list(chain or [SPEECH]), **config))


def begin(live: LiveServer, *chain: str, **config: Any) -> dict[str, Any]:
    answer = live.post("/v1/workflows?wait=false", body_of(list(chain or [SPEECH]), **config))
    assert answer.status_code == 202, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


def status_of(live: LiveServer, workflow_id: str) -> dict[str, Any]:
    found: dict[str, Any] = live.get(f"/v1/workflows/status/{workflow_id}").json()
    return found


def monitoring(live: LiveServer, path: str) -> dict[str, Any]:
    found: dict[str, Any] = live.get(f"/api/v1/monitoring/{path}").json()
    return found


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """The sentence of an error in the dialect's exact shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert set(error) == {"status", "error", "error_code", "task_id", "workflow_id"}
    assert (error["status"], error["error_code"]) == ("error", code)
    return str(error["error"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below which the workflows of `server` read and write."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[LiveServer]:
    link = root.with_name("link")
    link.symlink_to(root)
    with running(speaking(tone(0.5)), workflow_root=str(link)) as live:
        yield live


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Until it is set, the engine of `held` does not go on."""
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.fixture
def held(gate: threading.Event) -> FakeEngine:
    async def wait() -> None:
        while not gate.is_set():
            await asyncio.sleep(0.005)

    return speaking(tone(0.2), wait, tone(0.2))


def test_speech_is_written_and_described(server: LiveServer, root: Path) -> None:
    answer = run(server, text="Some text.", output_path="/share/workflows/output/speech.wav", emotion_alpha=0.5)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert re.fullmatch("workflow_[0-9a-f]{32}", result.pop("workflow_id"))
    assert re.fullmatch("task_[0-9a-f]{32}", result.pop("task_id"))
    assert 0 < result.pop("processing_time") < 600
    assert result == {
        "status": "success",
        "output_path": "/share/workflows/output/speech.wav",
        "duration": 0.5,
        "sample_rate": 24000,
        "text_length": 10,
        "model_info": {"model_type": "fake", "model_version": "1.0.0", "device": "cpu"},
        "parameters": {
            "reference_audio": None,
            "emotion_alpha": 0.5,
            "emotion_vector": None,
            "use_random": False,
            "max_text_tokens_per_segment": 120,
        },
    }
    samples, rate_hz = decode_native(root / "workflows/output/speech.wav")
    assert (samples.size, rate_hz) == (12000, 24000)


def test_health_is_as_the_contract_has_it(server: LiveServer) -> None:
    result = run(server, HEALTH).json()
    gpu = result.pop("gpu")
    assert result == {
        "status": "healthy",
        "service": "indextts_service",
        "model": "ready",
        "gpu_lock": "available",
    }
    assert set(gpu) == {"available", "count", "name"}
    assert gpu["available"] == bool(gpu["count"]) == bool(gpu["name"])


def test_model_info_is_the_real_engines() -> None:
    with running() as live:
        info = run(live, INFO).json()
        assert info["status"] == "success"
        model = info["model_info"]
        assert (model["model_type"], model["status"]) == ("hibari", "ready")
        assert set(model) == {"model_type", "model_version", "device", "model_path", "status", "capabilities"}
        assert model["capabilities"] == {
            "text_to_speech": True,
            "voice_cloning": False,
            "emotion_control": True,
            "multi_language": True,
            "real_time": False,
        }
        presets = run(live, PRESETS).json()
        assert (presets["status"], presets["total_count"]) == ("success", len(presets["presets"]))
        own = {path.stem for path in RECORDINGS.glob("*.wav")}
        assert set(presets["presets"]) == {"default", "male_01", "female_01", *own}
        assert [presets["presets"][name]["gender"] for name in ("male_01", "female_01")] == ["male", "female"]
        assert presets["presets"]["default"]["name"] == "Default Voice"
        assert presets["presets"]["default"]["description"] == "默认语音"
        for preset in presets["presets"].values():
            assert set(preset) == {"name", "description", "language", "gender"}
            assert preset["gender"] in {"male", "female"}
        for name in presets["presets"]:  # each is a name that a request may use
            assert run(live, text="a", reference_audio=name).status_code == 200


def test_a_chain_answers_with_its_last_result(server: LiveServer) -> None:
    answer = run(server, HEALTH, INFO, SPEECH, PRESETS)
    assert answer.status_code == 200
    assert answer.json()["total_count"] == 14
    assert run(server, PRESETS, SPEECH).json()["status"] == "success"


def test_one_who_does_not_wait_can_watch(held: FakeEngine, gate: threading.Event) -> None:
    with running(held) as live:
        accepted = begin(live, HEALTH, SPEECH, INFO)
        assert set(accepted) == {"status", "workflow_id", "task_id"}
        assert accepted["status"] == "pending"
        workflow_id = accepted["workflow_id"]
        eventually(lambda: status_of(live, workflow_id)["stages"][1]["status"] == "running")
        status = status_of(live, workflow_id)
        assert set(status) == {
            *("workflow_id", "status", "current_stage", "progress", "stages", "created_at", "updated_at")
        }
        assert (status["workflow_id"], status["status"]) == (workflow_id, "running")
        assert status["current_stage"] == SPEECH
        assert 33 <= status["progress"] < 67
        assert [stage["name"] for stage in status["stages"]] == [HEALTH, SPEECH, INFO]
        assert [stage["status"] for stage in status["stages"]] == ["completed", "running", "pending"]
        assert status["stages"][2]["started_at"] is None
        assert status["stages"][0]["output"]["processing_time"] >= 0
        for time_of in (status["created_at"], status["updated_at"], status["stages"][1]["started_at"]):
            assert TIME.fullmatch(time_of)
        gate.set()
        eventually(lambda: status_of(live, workflow_id)["status"] == "completed")
        status = status_of(live, workflow_id)
        assert (status["progress"], status["current_stage"]) == (100, INFO)


def test_a_chain_behind_another_is_pending(held: FakeEngine, gate: threading.Event) -> None:
    with running(held) as live:
        first, second = begin(live), begin(live, output_path="b.wav")
        eventually(lambda: status_of(live, first["workflow_id"])["status"] == "running")
        status = status_of(live, second["workflow_id"])
        assert (status["status"], status["progress"]) == ("pending", 0)
        gate.set()
        eventually(lambda: status_of(live, second["workflow_id"])["status"] == "completed")


@pytest.mark.parametrize(
    ("failure", "http_status", "code"),
    [
        (RuntimeError("a secret of the engine's"), 500, "PROCESSING_ERROR"),
        (EngineFailed(), 500, "PROCESSING_ERROR"),
        (MemoryError(), 503, "INSUFFICIENT_MEMORY"),
        (InvalidRequest("text has characters that the engine cannot speak", "text"), 400, "INVALID_INPUT"),
        (VoiceUnknown("a voice", ["another"]), 400, "INVALID_INPUT"),
    ],
    ids=["broken", "failed", "memory", "text", "voice"],
)
def test_the_first_failure_stops_the_chain(failure: Exception, http_status: int, code: str, tmp_path: Path) -> None:
    with running(speaking(tone(0.1), failure), workflow_root=str(tmp_path), max_task_attempts=1) as live:
        answer = run(live, HEALTH, SPEECH, INFO, SPEECH)
        sentence = refused(answer, http_status, code)
        assert SPEECH in sentence
        assert "secret" not in sentence
        status = status_of(live, answer.json()["workflow_id"])
        assert (status["status"], status["current_stage"]) == ("failed", SPEECH)
        assert [stage["status"] for stage in status["stages"]] == ["completed", "failed", "skipped", "skipped"]
        assert status["stages"][1]["output"]["error_code"] == code
        assert len(live.engine.requests) == 1
        assert not list(tmp_path.rglob("*.wav"))
        assert answer.json()["workflow_id"].startswith("workflow_")
        assert answer.json()["task_id"].startswith("task_")


VECTOR = [0.1, 0, 0, 0, 0, 0, 0, 0.9]


@pytest.mark.parametrize(
    ("given", "used", "ignored"),
    [
        ({}, None, []),
        ({"emotion_text": "开心"}, "text", []),
        ({"emotion_vector": VECTOR}, "vector", []),
        ({"emotion_reference": "voice_03"}, "reference", []),
        ({"emotion_text": "开心", "emotion_vector": VECTOR}, "text", ["emotion_vector"]),
        ({"emotion_text": "开心", "emotion_reference": "voice_03"}, "text", ["emotion_reference"]),
        ({"emotion_vector": VECTOR, "emotion_reference": "voice_03"}, "vector", ["emotion_reference"]),
        (
            {"emotion_reference": "voice_03", "emotion_vector": VECTOR, "emotion_text": "开心"},
            "text",
            ["emotion_vector", "emotion_reference"],
        ),
        ({"emotion_text": " ", "emotion_vector": VECTOR}, "vector", []),
        ({"emotion_text": "", "emotion_reference": ""}, None, []),
    ],
)
def test_of_several_emotions_one_is_used(
    server: LiveServer, given: dict[str, Any], used: str | None, ignored: list[str]
) -> None:
    answer = run(server, **given, emotion_alpha=0.25, use_random=True)
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"].get("ignored", []) == ignored
    assert answer.json()["parameters"]["emotion_vector"] == given.get("emotion_vector")
    emotion = server.engine.requests[-1].emotion
    if used is None:
        assert emotion is None
        return
    assert isinstance(emotion, Emotion)
    assert {name for name in ("text", "vector", "reference") if getattr(emotion, name) is not None} == {used}
    assert (emotion.weight, emotion.random) == (0.25, True)


def test_a_voice_is_a_file_a_name_or_an_upload(server: LiveServer, root: Path) -> None:
    (root / "voices").mkdir()
    (root / "voices/own.wav").write_bytes((RECORDINGS / "voice_07.wav").read_bytes())
    with (RECORDINGS / "voice_02.wav").open("rb") as file:
        upload = server.client.post("/api/v1/upload/audio", files={"file": file}).json()["file_id"]
    for name, content in (
        ("/share/voices/own.wav", "voice_07"),
        (f"{root}/voices/own.wav", "voice_07"),
        (f"{root.with_name('link')}/voices/own.wav", "voice_07"),
        ("voices/own.wav", "voice_07"),
        ("voice_05", "voice_05"),
        (None, "voice_01"),
        (upload, "voice_02"),
    ):
        answer = run(server, reference_audio=name, emotion_reference=name)
        assert answer.status_code == 200, answer.text
        assert answer.json()["parameters"]["reference_audio"] == name
        request = server.engine.requests[-1]
        assert request.voice.path.read_bytes() == (RECORDINGS / f"{content}.wav").read_bytes()
        assert (request.emotion is None) == (name is None)
    for name in ("/share/voices/none.wav", "no such voice", "f" * 64):
        refused(run(server, reference_audio=name), 404, "NOT_FOUND")


@pytest.fixture(scope="module")
def outside(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file outside the root, and links to it below the root."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "private.wav").write_bytes((RECORDINGS / "voice_01.wav").read_bytes())
    (root / "link").symlink_to(folder)
    (root / "link.wav").symlink_to(folder / "private.wav")
    (root / "dangling.wav").symlink_to(folder / "new.wav")
    (root / "folder.wav").mkdir()
    (root / "file.wav").write_bytes(b"")
    return folder


ESCAPES = {
    "parent": "../private.wav",
    "parents": "a/b/../../../private.wav",
    "share and up": "/share/../private.wav",
    "share and far up": "/share/../../../../../../../etc/private.wav",
    "twice": "/share/a/../../private.wav",
    "absolute": "/etc/private.wav",
    "absolute and up": "{root}/../private.wav",
    "beside": "{root}-beside/private.wav",
    "outside": "{outside}/private.wav",
    "doubled": "//etc/private.wav",
    "link": "/share/link/private.wav",
    "link of a file": "/share/link.wav",
    "link to nothing": "/share/dangling.wav",
    "NUL": "a\0.wav",
    "control": "a\n\x07.wav",
    "surrogate": "a\ud800.wav",
    "folder": "/share/folder.wav",
    "below a file": "/share/file.wav/a.wav",
    "root": "/share",
    "root's folder": "/share/",
    "nothing": "",
    "dot": ".",
    "long name": "a" * 300 + ".wav",
    "long": "a/" * 3000 + "a.wav",
}


@pytest.mark.parametrize("field", ["output_path", "reference_audio", "emotion_reference"])
@pytest.mark.parametrize("path", ESCAPES.values(), ids=ESCAPES)
def test_no_path_leads_out(server: LiveServer, root: Path, outside: Path, path: str, field: str) -> None:
    before = sorted(outside.iterdir()), sorted(root.parent.iterdir())
    path = path.format(root=root, outside=outside)
    answer = run(server, **{field: path})
    if field == "emotion_reference" and not path:
        assert answer.status_code == 200
        return
    assert field in refused(answer, 400, "INVALID_INPUT")
    assert (sorted(outside.iterdir()), sorted(root.parent.iterdir())) == before
    assert str(outside) not in answer.text.replace(path, "")


def test_a_link_made_later_is_not_followed(held: FakeEngine, gate: threading.Event, tmp_path: Path) -> None:
    """Between the acceptance and the writing."""
    (tmp_path / "private").mkdir()
    with running(held, workflow_root=str(tmp_path / "root")) as live:
        accepted = begin(live, output_path="late/a.wav")
        eventually(lambda: status_of(live, accepted["workflow_id"])["status"] == "running")
        (tmp_path / "root").mkdir(exist_ok=True)
        (tmp_path / "root/late").symlink_to(tmp_path / "private")
        gate.set()
        eventually(lambda: status_of(live, accepted["workflow_id"])["status"] == "failed")
        output = status_of(live, accepted["workflow_id"])["stages"][0]["output"]
        assert output["error_code"] == "INVALID_INPUT"
        assert not list((tmp_path / "private").iterdir())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"workflow_chain": []}, "workflow_chain"),
        ({"workflow_chain": ["indextts.sing"]}, "workflow_chain"),
        ({"workflow_chain": [HEALTH, "os.system"]}, "workflow_chain"),
        ({"workflow_chain": "indextts.health_check"}, "workflow_chain"),
        ({"workflow_chain": [HEALTH] * 101}, "workflow_chain"),
        ({"indextts_config": None}, "indextts_config"),
    ],
)
def test_a_chain_that_cannot_be(server: LiveServer, change: dict[str, Any], field: str) -> None:
    body = body_of([SPEECH])
    body["workflow_config"] |= change
    assert field in refused(server.post("/v1/workflows", body), 400, "INVALID_INPUT")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"text": "x" * 20001}, "20000"),
        ({"text": "a\0b"}, "U+0000"),
        ({"text": 5}, "text"),
        ({"text": "Hello [pause 100s] there."}, "text has a pause of 100 s"),
        ({"text": "Hello." + 31 * "[pause 10s]"}, "the pauses of text last 310 s"),
        ({"emotion_alpha": 1.1}, "emotion_alpha"),
        ({"emotion_alpha": -0.1}, "emotion_alpha"),
        ({"emotion_vector": [0.1] * 7}, "emotion_vector"),
        ({"emotion_vector": [2] + [0] * 7}, "emotion_vector"),
        ({"emotion_text": "\ud800"}, "emotion_text"),
        ({"max_text_tokens_per_segment": 0}, "max_text_tokens_per_segment"),
        ({"use_random": "perhaps"}, "use_random"),
    ],
)
def test_a_field_that_cannot_be(server: LiveServer, config: dict[str, Any], field: str) -> None:
    assert field in refused(run(server, **config), 400, "INVALID_INPUT")


def test_other_bodies_that_cannot_be(server: LiveServer) -> None:
    assert refused(run(server, text=" "), 400, "INVALID_INPUT") == "输入文本不能为空"
    refused(server.post("/v1/workflows", {}), 400, "INVALID_INPUT")
    refused(server.client.post("/v1/workflows", content=b"{"), 400, "INVALID_INPUT")
    refused(server.post("/v1/workflows?wait=maybe", body_of([HEALTH])), 400, "INVALID_INPUT")
    strange = body_of([SPEECH]) | {"video_path": "\ud800"}
    assert "video_path" in refused(post(server, strange), 400, "INVALID_INPUT")


def test_what_is_not_there(server: LiveServer) -> None:
    for path in ("status/workflow_none", "status/workflow_" + "0" * 32, "status/%00", "none"):
        refused(server.get(f"/v1/workflows/{path}"), 404, "NOT_FOUND")
    refused(server.get("/api/v1/monitoring/none"), 404, "NOT_FOUND")
    assert server.get("/v1/workflows").status_code == 405


def test_a_key_is_asked_for_in_the_dialects_shape(tmp_path: Path) -> None:
    with running(speaking(tone(0.1)), wait=False, api_keys=("secret",)) as live:
        eventually(lambda: live.get("/health").status_code == 200)
        refused(run(live), 401, "UNAUTHORIZED")
        for path in ("/v1/workflows/status/x", "/api/v1/monitoring/statistics"):
            refused(live.get(path, headers={"X-API-Key": "wrong"}), 401, "UNAUTHORIZED")
        assert live.post("/v1/workflows", body_of([HEALTH]), headers={"X-API-Key": "secret"}).status_code == 200


def test_a_wait_that_is_too_long_ends_and_the_workflow_goes_on(held: FakeEngine, gate: threading.Event) -> None:
    with running(held, workflow_wait_s=0.3) as live:
        answer = run(live)
        assert "0.3 s" in refused(answer, 408, "TASK_TIMEOUT")
        workflow_id = answer.json()["workflow_id"]
        eventually(lambda: status_of(live, workflow_id)["status"] == "running")
        gate.set()
        eventually(lambda: status_of(live, workflow_id)["status"] == "completed")


def test_a_model_that_is_not_ready(gate: threading.Event) -> None:
    with running(FakeEngine(warming=[RuntimeError("no model")]), wait=False) as live:
        eventually(lambda: live.get("/health").status_code == 503)
        answer = run(live)
        refused(answer, 503, "MODEL_NOT_READY")
        assert int(answer.headers["retry-after"]) >= 1


def test_a_full_queue(held: FakeEngine, gate: threading.Event) -> None:
    with running(held, max_pending_tasks=2) as live:
        running_one = begin(live)
        eventually(lambda: status_of(live, running_one["workflow_id"])["status"] == "running")
        waiting = [begin(live, output_path=f"{index}.wav") for index in range(2)]
        answer = run(live)
        refused(answer, 503, "QUEUE_FULL")
        assert int(answer.headers["retry-after"]) >= 1
        gate.set()
        eventually(lambda: status_of(live, waiting[-1]["workflow_id"])["status"] == "completed")


def test_an_output_is_whole_or_not_there(held: FakeEngine, gate: threading.Event, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"the old one")
    with running(held, workflow_root=str(tmp_path)) as live:
        accepted = begin(live, output_path="a.wav")
        eventually(lambda: status_of(live, accepted["workflow_id"])["status"] == "running")
        assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
        assert (tmp_path / "a.wav").read_bytes() == b"the old one"
        gate.set()
        eventually(lambda: status_of(live, accepted["workflow_id"])["status"] == "completed")
        assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
        assert decode_native(tmp_path / "a.wav")[0].size == round(0.4 * 24000)


def test_monitoring_tells_of_a_job(held: FakeEngine, gate: threading.Event) -> None:
    with running(held, task_lease_s=3600) as live:
        eventually(lambda: monitoring(live, "gpu-lock/health")["total_locks"] == 1)
        accepted = begin(live)
        eventually(lambda: status_of(live, accepted["workflow_id"])["status"] == "running")
        eventually(lambda: monitoring(live, "gpu-lock/health")["active_locks"] == 1)
        health = monitoring(live, "gpu-lock/health")
        assert set(health) == {"status", "total_locks", "active_locks", "locks", "health_thresholds"}
        assert health["health_thresholds"] == {"min_success_rate": 0.8, "max_timeout_rate": 0.2}
        (lock,) = health["locks"]
        assert set(lock) == {"lock_key", "locked", "last_acquired", "expires_at"}
        assert (lock["lock_key"], lock["locked"]) == ("gpu_lock:0", True)
        assert TIME.fullmatch(lock["last_acquired"])
        assert lock["expires_at"] > lock["last_acquired"]
        beats = monitoring(live, "heartbeat/all")
        assert (beats["total_tasks"], beats["active_tasks"]) == (1, 1)
        (beat,) = beats["tasks"]
        assert set(beat) == {"task_id", "task_name", "worker_id", "last_heartbeat", "status"}
        assert (beat["task_id"], beat["task_name"], beat["status"]) == (accepted["task_id"], SPEECH, "running")
        assert beat["worker_id"].startswith("worker@")
        eventually(lambda: monitoring(live, "heartbeat/all")["tasks"][0]["last_heartbeat"] > beat["last_heartbeat"])
        assert monitoring(live, "statistics")["workers"] == {"total": 1, "active": 1, "idle": 0}
        gate.set()
        eventually(lambda: status_of(live, accepted["workflow_id"])["status"] == "completed")
        assert monitoring(live, "gpu-lock/health")["active_locks"] == 0
        assert monitoring(live, "heartbeat/all")["active_tasks"] == 0


def test_monitoring_tells_of_a_live_request(held: FakeEngine, gate: threading.Event) -> None:
    with running(held, task_lease_s=3600) as live:
        eventually(lambda: monitoring(live, "statistics")["workers"]["total"] == 1)
        client = RawClient(live.port, "/synthesize_stream_opus", {"text": "live"})
        client.read(100)
        assert monitoring(live, "gpu-lock/health")["active_locks"] == 1
        assert monitoring(live, "gpu-lock/health")["locks"][0]["expires_at"] is None
        assert monitoring(live, "heartbeat/all")["total_tasks"] == 0
        gate.set()
        client.read_all()
        eventually(lambda: monitoring(live, "gpu-lock/health")["active_locks"] == 0)


def test_statistics_count_what_became_of_the_tasks() -> None:
    with running(by_text({"good": [0.2, tone(0.1)], "bad": [RuntimeError()]}), max_task_attempts=1) as live:
        empty = monitoring(live, "statistics")
        assert empty["system"]["success_rate"] == 1
        assert set(empty) == {"system", "gpu", "workers"}
        assert set(empty["gpu"]) == {"utilization", "memory_used", "memory_total"}
        assert run(live, text="good").status_code == 200
        assert monitoring(live, "gpu-lock/health")["status"] == "healthy"
        assert run(live, text="bad").status_code == 500
        system = monitoring(live, "statistics")["system"]
        assert system["avg_processing_time"] >= 0.2
        assert system == {
            "total_tasks": 2,
            "successful_tasks": 1,
            "failed_tasks": 1,
            "success_rate": 0.5,
            "avg_processing_time": system["avg_processing_time"],
        }
        assert monitoring(live, "gpu-lock/health")["status"] == "degraded"


def test_workflows_are_not_tasks_of_the_other_dialect(server: LiveServer) -> None:
    result = run(server).json()
    listed = server.get("/api/v1/tasks").json()
    assert listed["total"] == len(listed["tasks"]) == 0
    assert server.get(f"/api/v1/task/{result['task_id']}").status_code == 404
    assert server.client.delete(f"/api/v1/task/{result['task_id']}").status_code == 404
    assert status_of(server, result["workflow_id"])["status"] == "completed"


def test_a_server_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = {"DATA_DIR": str(tmp_path), "TASK_LEASE_S": "1"}
    body = body_of([HEALTH, SPEECH, INFO], text=until(tmp_path / "end"))
    with server_process(**SCRIPTED | settings) as first:
        accepted = httpx.post(first.url + "/v1/workflows?wait=false", json=body, timeout=120).json()
        path = f"/v1/workflows/status/{accepted['workflow_id']}"
        eventually(lambda: httpx.get(first.url + path, timeout=120).json()["stages"][1]["status"] == "running")
        first.stop(signal.SIGKILL)
    assert not list((tmp_path / "workflows").rglob("*.wav"))
    (tmp_path / "end").touch()
    with server_process(**SCRIPTED | settings) as second:
        eventually(lambda: httpx.get(second.url + path, timeout=120).json()["status"] == "completed")
        stages = httpx.get(second.url + path, timeout=120).json()["stages"]
        assert [stage["status"] for stage in stages] == ["completed"] * 3
    assert [path.name for path in (tmp_path / "workflows").rglob("*") if path.is_file()] == ["a.wav"]
    assert not [path for path in (tmp_path / "scratch").iterdir() if f"-{first.process.pid}-" in path.name]


@pytest.mark.parametrize("config", [None, {}, {"text": 5}, {"output_path": "../a.wav"}, "nonsense"])
def test_a_chain_that_does_not_speak_leaves_the_speech_unread(server: LiveServer, config: Any) -> None:
    body = body_of([HEALTH, INFO])
    assert post(server, body).status_code == 200
    body["workflow_config"]["indextts_config"] = config
    assert post(server, body).json()["status"] == "success"


@pytest.mark.parametrize("name", ["speech.mp3", "speech", "speech.tar.gz"])
def test_the_output_is_wav_under_any_name(server: LiveServer, root: Path, name: str) -> None:
    assert run(server, output_path=name).json()["output_path"] == name
    assert (root / name).read_bytes()[:4] == b"RIFF"


def test_presets_are_voices(server: LiveServer) -> None:
    presets = run(server, PRESETS).json()["presets"]
    for name in ("default", "male_01", "female_01"):
        assert run(server, reference_audio=name).status_code == 200
        assert server.engine.requests[-1].voice.name in presets
        assert presets[server.engine.requests[-1].voice.name]["gender"] == presets[name]["gender"]
    assert presets["voice_01"]["language"] == presets["default"]["language"] == "en"


def test_a_running_stage_says_for_how_long(held: FakeEngine, gate: threading.Event) -> None:
    with running(held) as live:
        accepted = begin(live)
        eventually(lambda: status_of(live, accepted["workflow_id"])["stages"][0]["status"] == "running")
        status = status_of(live, accepted["workflow_id"])
        assert isinstance(status["progress"], int)
        began_s = status["stages"][0]["output"]["processing_time"]
        eventually(lambda: status_of(live, accepted["workflow_id"])["stages"][0]["output"]["processing_time"] > began_s)


def test_what_the_engine_cannot_honour_is_named() -> None:
    engine = speaking(tone(0.1))
    engine.capabilities = frozenset({Capability.EMOTION_CONTROL, Capability.EMOTION_VECTOR})
    with running(engine) as live:
        answer = run(live, emotion_text="happy", use_random=True).json()
        assert answer["parameters"]["ignored"] == ["emotion_text", "use_random"]
        assert "ignored" not in run(live, emotion_vector=[0.1] * 8).json()["parameters"]
        assert "ignored" not in run(live, use_random=True).json()["parameters"]


def test_an_error_after_the_acceptance_has_both_ids(held: FakeEngine, gate: threading.Event, tmp_path: Path) -> None:
    with running(held, data_dir=tmp_path) as live:
        answers: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: answers.append(run(live)))
        waiting.start()
        eventually(lambda: live.engine.requests)
        with sqlite3.connect(tmp_path / "server.db", timeout=10) as database:
            database.execute("DELETE FROM jobs")
        waiting.join()
        refused(answers[0], 404, "NOT_FOUND")
        assert answers[0].json()["task_id"].startswith("task_")
        assert answers[0].json()["workflow_id"].startswith("workflow_")
