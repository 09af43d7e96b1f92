"""The task dialect as its contract has it, through ``requests`` on real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
import time
import wave
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from streaming_server.domain import Emotion, SpeechRequest
from streaming_server.jobs import runner
from tests.support.fakes import FOREVER, FakeEngine, Gate, Step, tone
from tests.support.postgres import Clock, PostgreSQL, files_below
from tests.support.recordings import made
from tests.support.server import RECORDINGS, LiveServer, RawClient, around_now, by_text, eventually, running, speaking

VOICE = (RECORDINGS / "voice_05.wav").read_bytes()
VOICE_ID = hashlib.sha256(VOICE).hexdigest()
SLOW: list[Step] = [step for _ in range(100) for step in (tone(0.1), 0.05)]
"""Ten seconds of audio in five."""


class Client:
    """What a batch client does, with the documented calls alone."""

    def __init__(self, live: LiveServer) -> None:
        self.url = f"http://127.0.0.1:{live.port}"
        self.session = requests.Session()

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.url + path, timeout=120, **options)

    def upload(self, content: bytes = VOICE, name: str = "voice.wav") -> requests.Response:
        return self.session.post(f"{self.url}/api/v1/upload/audio", files={"file": (name, content)}, timeout=120)

    def post(self, path: str, **body: Any) -> requests.Response:
        return self.session.post(self.url + path, json=body, timeout=120)

    def submit(self, text: str = "One.", **body: Any) -> str:
        answer = self.post("/api/v1/tts", **{"text": text, "prompt_audio_id": "voice_01"} | body)
        assert answer.status_code == 200, answer.text
        task_id: str = answer.json()["task_id"]
        return task_id

    def task(self, task_id: str) -> dict[str, Any]:
        answer = self.get(f"/api/v1/task/{task_id}")
        assert answer.status_code == 200, answer.text
        record: dict[str, Any] = answer.json()
        return record

    def ended(self, task_id: str) -> dict[str, Any]:
        eventually(lambda: self.task(task_id)["completed_at"])
        return self.task(task_id)

    def delete(self, task_id: str) -> requests.Response:
        return self.session.delete(f"{self.url}/api/v1/task/{task_id}", timeout=120)

    def metrics(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """By name and the values of the labels."""
        answer = self.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with running(by_text_or_tone()) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Client:
    return Client(live)


def by_text_or_tone() -> FakeEngine:
    def script(request: SpeechRequest) -> list[Step]:
        return SLOW if request.text == "slow" else [tone(0.3), tone(0.2)]

    return FakeEngine(script)


def refused(answer: requests.Response, status: int, *words: str) -> str:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"success", "message"}
    assert answer.json()["success"] is False
    message: str = answer.json()["message"]
    for word in words:
        assert word in message
    return message


def audio_s(content: bytes) -> float:
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        assert len(content) == 44 + file.getnframes() * 2
        return float(file.getnframes() / file.getframerate())


def test_the_documented_flow(tmp_path: Path) -> None:
    """Upload, submit, poll, download, as it stands in the contract, with a voice that really speaks."""
    with running(data_dir=tmp_path) as live:
        url = f"http://127.0.0.1:{live.port}"
        with (RECORDINGS / "voice_02.wav").open("rb") as file:
            uploaded = requests.post(f"{url}/api/v1/upload/audio", files={"file": file}, timeout=120).json()
        assert uploaded["success"]
        assert not uploaded["is_duplicate"]
        body = {"text": "今天天气很好。", "prompt_audio_id": uploaded["file_id"]}
        submitted = requests.post(f"{url}/api/v1/tts", json=body, timeout=120).json()
        assert (submitted["success"], submitted["status"]) == (True, "pending")
        task: dict[str, Any] = {"status": "pending"}
        while task["status"] in {"pending", "processing"}:
            task = requests.get(f"{url}/api/v1/task/{submitted['task_id']}", timeout=120).json()
            time.sleep(0.05)
        assert (task["status"], task["progress"]) == ("completed", 1.0)
        audio = requests.get(f"{url}/api/v1/audio/{submitted['task_id']}", timeout=120)
        assert audio.headers["content-type"] == "audio/wav"
        assert int(audio.headers["content-length"]) == len(audio.content)
        assert 1 < audio_s(audio.content) < 5


def test_both_health_routes(client: Client) -> None:
    health = client.get("/api/v1/health").json()
    assert health == {**health, "success": True, "status": "healthy", "model_loaded": True}
    assert set(health) == {"success", "status", "model_loaded", "timestamp"}
    assert health["timestamp"] == around_now()
    assert client.get("/health").json()["status"] == "healthy"


def test_an_upload_and_its_record(client: Client) -> None:
    content = made_wav(0.75)
    answer = client.upload(content, "我的声音.wav").json()
    record = {
        "success": True,
        "file_id": hashlib.sha256(content).hexdigest(),
        "filename": "我的声音.wav",
        "size": len(content),
        "format": "wav",
        "sample_rate": 24000,
        "duration": 0.75,
    }
    assert answer == {**answer, **record, "is_duplicate": False}
    described = client.get(f"/api/v1/file/{record['file_id']}").json()
    assert described == {**described, **record}
    assert set(described) == {*record, "created_at", "expires_at"}
    created, expires = (moment(described[name]) for name in ("created_at", "expires_at"))
    assert created == around_now()
    assert expires - created == pytest.approx(3600)
    again = client.upload(content, "other.wav").json()
    assert (again["file_id"], again["filename"], again["is_duplicate"]) == (record["file_id"], "我的声音.wav", True)


def made_wav(seconds: float) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24000)
        file.writeframes((tone(seconds) * 32767).astype("<i2").tobytes())
    return out.getvalue()


def moment(text: str) -> float:
    """ISO 8601, UTC, with a Z."""
    assert text.endswith("Z")
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "flac", "MP3", "Wav"])
def test_uploads_of_each_format(client: Client, suffix: str, tmp_path: Path) -> None:
    content = made(tmp_path / f"a.{suffix.lower()}").read_bytes()
    answer = client.upload(content, f"a.{suffix}").json()
    assert (answer["success"], answer["format"]) == (True, suffix.lower())


def test_the_record_says_what_the_content_is(client: Client, tmp_path: Path) -> None:
    content = made(tmp_path / "a.flac", source="sine=300").read_bytes()
    assert client.upload(content, "a.mp3").json()["format"] == "flac"


def test_a_path_in_the_name_is_no_path(client: Client) -> None:
    answer = client.upload(made_wav(0.3), r"C:\voices\..\me.wav").json()
    assert answer["filename"] == "me.wav"


def test_a_task_record(client: Client) -> None:
    before_s = time.time()
    task_id = client.submit()
    task = client.ended(task_id)
    times = {name: moment(task.pop(name)) for name in ("created_at", "started_at", "completed_at", "expires_at")}
    assert task == {
        "success": True,
        "task_id": task_id,
        "status": "completed",
        "progress": 1.0,
        "message": task["message"],
        "text_preview": "One.",
    }
    assert times.pop("expires_at") == pytest.approx(times["completed_at"] + 86400, abs=0.01)
    assert before_s - 1 < times["created_at"] <= times["started_at"] <= times["completed_at"] < time.time() + 1
    audio = client.get(f"/api/v1/audio/{task_id}")
    assert audio_s(audio.content) == 0.5
    past = client.get(f"/api/v1/audio/{task_id}", headers={"Range": "bytes=99999999-"})
    assert (past.status_code, past.json()["success"]) == (416, False)
    part = client.get(f"/api/v1/audio/{task_id}", headers={"Range": "bytes=44-143"})
    assert (part.status_code, part.content) == (206, audio.content[44:144])


def test_progress_moves(client: Client) -> None:
    text = "a" * 150  # ten seconds, as estimated
    seen: list[tuple[str, float]] = []

    def reported(count: int) -> Step:
        async def wait() -> None:
            while len({value for status, value in seen if status == "processing"}) < count:
                await asyncio.sleep(0.005)

        return wait

    steps: list[Step] = [step for count in range(1, 9) for step in (tone(1.0), reported(count))]
    with running(by_text({text: steps})) as live:
        client = Client(live)
        task_id = client.submit(text)

        def over() -> bool:
            task = client.task(task_id)
            if task["status"] != "completed":
                assert (task["completed_at"], task["expires_at"]) == (None, None)
            seen.append((task["status"], task["progress"]))
            time.sleep(0.02)
            return bool(task["status"] == "completed")

        eventually(over)
    progress = [value for _, value in seen]
    assert progress == sorted(progress)
    assert len({value for status, value in seen if status == "processing"}) >= 8
    assert {0.0, 1.0} <= set(progress)
    assert [status for status, _ in seen if status == "processing"]


def test_sync(live: LiveServer, client: Client) -> None:
    answer = client.post("/api/v1/tts/sync", text="At once.", prompt_audio_id="voice_03", top_k=7)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    assert audio_s(answer.content) == 0.5
    asked = live.engine.requests[-1]
    assert (asked.text, asked.voice.name, asked.generation.top_k) == ("At once.", "voice_03", 7)


def test_every_field_reaches_the_engine(live: LiveServer, client: Client) -> None:
    given = {
        "max_text_tokens_per_segment": 33,
        "do_sample": False,
        "top_p": 0.5,
        "top_k": 3,
        "temperature": 0.7,
        "length_penalty": 0.1,
        "num_beams": 2,
        "repetition_penalty": 1.5,
        "max_mel_tokens": 123,
    }
    for path in ("/api/v1/tts", "/api/v1/tts/sync"):
        before = len(live.engine.requests)
        assert client.post(path, text="All fields.", prompt_audio_id="voice_01", **given).status_code == 200
        eventually(lambda before=before: len(live.engine.requests) > before)  # type: ignore[misc]
        asked = live.engine.requests[-1].generation
        renamed = {"max_text_tokens_per_sentence" if key.startswith("max_text") else key: given[key] for key in given}
        assert {name: getattr(asked, name) for name in renamed} == renamed


@pytest.mark.parametrize("path", ["/api/v1/tts", "/api/v1/tts/sync"])
@pytest.mark.parametrize("name", ["emo_audio_id", "emo_audio_path"])
def test_emotion_by_all_four_methods(live: LiveServer, client: Client, path: str, name: str) -> None:
    client.upload()
    vector = [0.1, 0, 0.3, 0, 0.5, 0, 0.7, 1]
    felt: list[Emotion | None] = []
    everything = {name: VOICE_ID, "emo_vector": vector, "emo_text": " 很高兴 ", "emo_weight": 0.4, "emo_random": True}
    for method in range(4):
        before = len(live.engine.requests)
        answer = client.post(path, text="Hm.", prompt_audio_id=VOICE_ID, emo_control_method=method, **everything)
        assert answer.status_code == 200, answer.text
        eventually(lambda before=before: len(live.engine.requests) > before)  # type: ignore[misc]
        asked = live.engine.requests[-1]
        assert asked.voice.name == VOICE_ID
        assert asked.voice.path.read_bytes() == VOICE
        felt.append(asked.emotion)
    none, by_audio, by_vector, by_text = felt
    assert none is None
    assert by_audio is not None
    assert by_audio.reference is not None
    assert by_audio.reference.path.read_bytes() == VOICE
    assert by_vector == Emotion(vector=tuple(vector), weight=0.4, random=True)  # type: ignore[arg-type]
    assert by_text == Emotion(text=" 很高兴 ", weight=0.4, random=True)
    assert (by_audio.weight, by_audio.random) == (0.4, True)


@pytest.mark.parametrize(
    ("method", "field"), [(1, "emo_audio_id"), (2, "emo_vector"), (3, "emo_text")], ids=["audio", "vector", "text"]
)
def test_a_method_without_its_field(client: Client, method: int, field: str) -> None:
    for blank in ({}, {field: None}, {field: ""} if field != "emo_vector" else {}):
        answer = client.post("/api/v1/tts", text="a", prompt_audio_id="voice_01", emo_control_method=method, **blank)
        refused(answer, 400, field)


@pytest.mark.parametrize("value", [5, "x" * 10_000, "", "voice_77", "0" * 64])
def test_an_error_names_the_field_that_was_sent(client: Client, value: Any) -> None:
    for name in ("emo_audio_id", "emo_audio_path"):
        given = {"emo_control_method": 1, name: value}
        answer = client.post("/api/v1/tts", text="a", prompt_audio_id="voice_01", **given)
        message = refused(answer, 404 if value == "0" * 64 else 400)
        assert value == "0" * 64 or name in message


def test_head_and_allow(client: Client) -> None:
    client.upload()
    task_id = client.submit()
    client.ended(task_id)
    allowed = {
        "/api/v1/health": "GET, HEAD",
        "/api/v1/tasks": "GET, HEAD",
        f"/api/v1/task/{task_id}": "DELETE, GET, HEAD",
        f"/api/v1/audio/{task_id}": "GET, HEAD",
        f"/api/v1/file/{VOICE_ID}": "GET, HEAD",
        "/api/v1/tts": "POST",
        "/api/v1/tts/sync": "POST",
        "/api/v1/upload/audio": "POST",
        "/metrics": "GET, HEAD",
        "/static/player.js": "GET, HEAD",
    }
    for path, methods in allowed.items():
        if "HEAD" in methods:
            got, head = client.get(path), client.session.head(client.url + path, timeout=120)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == got.headers["content-type"]
        answer = client.session.put(client.url + path, timeout=120)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)
        if path.startswith("/api/"):
            refused(answer, 405)
    refused(client.get("/api/v1/nothing"), 404)
    refused(client.get("/api/v1"), 404)


def test_what_is_not_there(client: Client) -> None:
    nobody = "0" * 32
    refused(client.get(f"/api/v1/task/{nobody}"), 404, nobody)
    refused(client.get(f"/api/v1/audio/{nobody}"), 404, nobody)
    refused(client.delete(nobody), 404, nobody)
    refused(client.get(f"/api/v1/file/{'0' * 64}"), 404)
    refused(client.post("/api/v1/tts", text="a", prompt_audio_id="0" * 64), 404)
    refused(client.post("/api/v1/tts", text="a", prompt_audio_id="voice_77"), 400, "prompt_audio_id", "voice_01")


def test_deleting_what_is_finished(tmp_path: Path) -> None:
    with running(FakeEngine(), data_dir=tmp_path) as live:
        client = Client(live)
        task_id = client.submit()
        client.ended(task_id)
        assert files_below(tmp_path) == [f"audio/{task_id}.wav"]
        answer = client.delete(task_id).json()
        assert (answer["success"], answer["task_id"]) == (True, task_id)
        assert files_below(tmp_path) == []
        refused(client.get(f"/api/v1/task/{task_id}"), 404)
        refused(client.get(f"/api/v1/audio/{task_id}"), 404)
        refused(client.delete(task_id), 404)


def test_a_running_one_is_stopped_within_a_chunk_and_a_pending_one_never_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = by_text({"running": [*SLOW[:40], FOREVER], "pending": SLOW, "next": [tone(0.1)]})
    with running(engine, data_dir=tmp_path) as live:
        client = Client(live)
        first, second = client.submit("running"), client.submit("pending")
        eventually(lambda: client.task(first)["progress"] > 0)
        refused(client.get(f"/api/v1/audio/{first}"), 400, "processing")
        refused(client.get(f"/api/v1/audio/{second}"), 400, "pending")
        monkeypatch.setattr(runner, "_REPORT_S", 60.0)  # it is told, and does not only find out
        time.sleep(0.3)
        assert client.delete(second).status_code == 200
        assert client.delete(first).status_code == 200
        eventually(lambda: not engine.running and not live.queue()["is_processing"])
        third = client.submit("next")
        client.ended(third)
        assert [request.text for request in engine.requests] == ["running", "next"]
        assert client.get("/api/v1/tasks").json()["total"] == 1
        assert files_below(tmp_path) == [f"audio/{third}.wav"]


@pytest.mark.parametrize("live_first", [True, False])
def test_who_goes_first_when_both_wait(live_first: bool) -> None:
    gate = Gate()
    scripts: dict[str, list[Step]] = {"holding": [tone(0.1), gate], "task": [tone(0.1)], "live": [tone(0.1)]}
    engine = by_text(scripts)
    with running(engine, live_first=live_first) as live:
        client = Client(live)
        holding = RawClient(live.port, "/synthesize_stream", {"text": "holding"})
        eventually(lambda: engine.running)
        task_id = client.submit("task")
        eventually(lambda: client.metrics()["speech_queue_length", ("waiting",)] == 1)
        asking = RawClient(live.port, "/synthesize", {"text": "live"})
        eventually(lambda: client.metrics()["speech_queue_length", ("waiting",)] == 2)
        gate.open()
        assert asking.read_all().startswith(b"HTTP/1.1 200")
        client.ended(task_id)
        holding.close()
    order = [request.text for request in engine.requests]
    assert order == ["holding", *(["live", "task"] if live_first else ["task", "live"])]


def test_a_recording_that_is_converted_while_its_task_waits_is_used(tmp_path: Path) -> None:
    recording, gate = tmp_path / "anna.wav", Gate()
    recording.write_bytes(VOICE)
    engine = by_text({"holding": [tone(0.1), gate], "task": [tone(0.1)]})
    with running(engine, reference_audio_dir=tmp_path) as live:
        client = Client(live)
        holding = RawClient(live.port, "/synthesize_stream", {"text": "holding"})
        eventually(lambda: engine.running)
        task_id = client.submit("task", prompt_audio_id="anna")
        eventually(lambda: live.service.slot.status().waiting)
        recording.rename(tmp_path / "anna.flac")
        gate.open()
        assert client.ended(task_id)["status"] == "completed"
        holding.close()
    assert engine.requests[-1].voice.path.name == "anna.flac"


@pytest.mark.parametrize("linked", [False, True])
def test_a_recording_that_goes_away_while_its_task_waits_fails_it(tmp_path: Path, linked: bool) -> None:
    recording, gate = tmp_path / "anna.wav", Gate()
    recording.write_bytes(VOICE)
    with running(by_text({"holding": [tone(0.1), gate]}), reference_audio_dir=tmp_path) as live:
        client = Client(live)
        holding = RawClient(live.port, "/synthesize_stream", {"text": "holding"})
        eventually(lambda: live.engine.running)
        task_id = client.submit("task", prompt_audio_id="anna")
        eventually(lambda: live.service.slot.status().waiting)
        recording.unlink()
        if linked:
            recording.symlink_to(tmp_path / "nowhere")
        gate.open()
        ended = client.ended(task_id)
        assert (ended["status"], "anna.wav" in ended["message"]) == ("failed", True)
        holding.close()


def test_the_list(tmp_path: Path) -> None:
    scripts: dict[str, list[Step]] = {
        "good": [tone(0.1)],
        "bad": [RuntimeError("a secret")],
        "slow": [tone(0.1), FOREVER],
    }
    with running(by_text(scripts), data_dir=tmp_path, max_task_attempts=1) as live:
        client = Client(live)
        ids = [client.submit(text) for text in ("good", "bad", "good", "slow", "slow", "slow")]
        eventually(lambda: client.task(ids[3])["status"] == "processing")

        def listed(**query: str) -> tuple[list[str], int]:
            answer = client.get("/api/v1/tasks", params=query).json()
            assert set(answer) == {"success", "tasks", "total"}
            return [task["task_id"] for task in answer["tasks"]], answer["total"]

        newest = ids[::-1]
        assert listed() == (newest, 6)
        assert listed(limit="2") == (newest[:2], 6)
        assert listed(limit="2", offset="3") == (newest[3:5], 6)
        assert listed(offset="99") == ([], 6)
        assert listed(status="pending") == (newest[:2], 2)
        assert listed(status="processing") == ([ids[3]], 1)
        assert listed(status="completed", limit="1") == ([ids[2]], 2)
        assert listed(status="failed") == ([ids[1]], 1)
        (failed,) = client.get("/api/v1/tasks", params={"status": "failed"}).json()["tasks"]
        assert failed["completed_at"]
        assert "secret" not in failed["message"]
        refused(client.get(f"/api/v1/audio/{ids[1]}"), 400, "failed")
        for query in ({"limit": "0"}, {"limit": "x"}, {"limit": "1001"}, {"offset": "-1"}, {"status": "done"}):
            refused(client.get("/api/v1/tasks", params=query), 400, *query)


def test_an_upload_is_a_voice_wherever_one_is_named(live: LiveServer, client: Client) -> None:
    client.upload()
    before = client.get("/reference_audios").json()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/v1/audio/speech", {"model": "tts-1", "input": "a", "voice": VOICE_ID, "response_format": "wav"}),
        ("/tts_url", {"text": "a", "audio_paths": [VOICE_ID]}),
        ("/tts_url", {"text": "a", "spk_audio_path": VOICE_ID, "emo_control_method": 1, "emo_ref_path": VOICE_ID}),
    ]
    for path, body in calls:
        answer = client.post(path, **body)
        assert answer.status_code == 200, answer.text
        asked = live.engine.requests[-1]
        assert (asked.voice.name, asked.voice.index) == (VOICE_ID, None)
        assert asked.voice.path.read_bytes() == VOICE
    assert client.get("/reference_audios").json() == before
    assert VOICE_ID not in str(before)
    unknown = client.post("/v1/audio/speech", model="tts-1", input="a", voice="0" * 64)
    assert unknown.status_code == 400


def test_what_was_accepted_outlives_a_restart(tmp_path: Path) -> None:
    slow = by_text({"done": [tone(0.4)], "slow": [tone(0.1), FOREVER], "next": [tone(0.1)]})
    with running(slow, data_dir=tmp_path) as live:
        client = Client(live)
        voice = client.upload().json()["file_id"]
        done, interrupted, pending = (client.submit(text, prompt_audio_id=voice) for text in ("done", "slow", "next"))
        eventually(lambda: client.task(interrupted)["progress"] > 0)
        before = client.task(done)
    quick = by_text({"slow": [tone(0.2)], "next": [tone(0.1)]})
    with running(quick, data_dir=tmp_path) as live:
        client = Client(live)
        assert client.task(done) == before
        assert audio_s(client.get(f"/api/v1/audio/{done}").content) == 0.4
        for task_id, length_s in ((interrupted, 0.2), (pending, 0.1)):
            assert client.ended(task_id)["status"] == "completed"
            assert audio_s(client.get(f"/api/v1/audio/{task_id}").content) == pytest.approx(length_s)
        assert [request.text for request in quick.requests] == ["slow", "next"], "in their old places"
        assert client.upload().json()["is_duplicate"]
    assert files_below(tmp_path) == sorted(
        [*(f"audio/{task_id}.wav" for task_id in (done, interrupted, pending)), f"uploads/{voice}"]
    )


def test_a_database_that_is_away_for_a_moment_loses_nothing(postgresql: PostgreSQL, tmp_path: Path) -> None:
    engine = by_text({"slow": SLOW[:60], "next": [tone(0.1)]})
    url = postgresql.new_database()
    with running(engine, data_dir=tmp_path, database_url=url, task_lease_s=2.0) as live:
        client = Client(live)
        tasks = [client.submit(text) for text in ("slow", "next")]
        eventually(lambda: client.task(tasks[0])["progress"] > 0)
        postgresql.stop()
        try:
            message = refused(client.get("/api/v1/tasks"), 503, "try again later")
            assert "psycopg" not in message
            refused(client.post("/api/v1/tts", text="next", prompt_audio_id="voice_01"), 503)
            assert client.get("/health").status_code == 200
            time.sleep(0.6)
        finally:
            postgresql.start()
        eventually(lambda: all(client.task(task_id)["status"] == "completed" for task_id in tasks))
        assert audio_s(client.get(f"/api/v1/audio/{tasks[0]}").content) == pytest.approx(3.0)


def test_a_key_is_asked_for() -> None:
    with running(FakeEngine(), api_keys=("secret",)) as live:
        client = Client(live)
        for path in ("/api/v1/tasks", "/api/v1/health", f"/api/v1/task/{'0' * 32}"):
            refused(client.get(path), 401)
        refused(client.upload(), 401)
        assert client.get("/metrics").status_code == 401
        client.session.headers["Authorization"] = "Bearer secret"
        assert client.upload().status_code == 200


def test_while_the_model_loads() -> None:
    with running(FakeEngine(warming=[FOREVER]), wait=False) as live:
        client = Client(live)
        calls = [
            client.get("/api/v1/health"),
            client.post("/api/v1/tts", text="a", prompt_audio_id="voice_01"),
            client.post("/api/v1/tts/sync", text="a", prompt_audio_id="voice_01"),
        ]
        for answer in calls:
            refused(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/api/v1/tasks").json()["total"] == 0
        assert client.upload().status_code == 200, "needs no model"


def test_full_queues() -> None:
    with running(speaking(tone(0.1), FOREVER), max_pending_tasks=2, max_queue=0) as live:
        client = Client(live)
        first = client.submit()
        eventually(lambda: client.task(first)["progress"] > 0)
        client.submit()
        client.submit()
        full = client.post("/api/v1/tts", text="a", prompt_audio_id="voice_01")
        refused(full, 503, "at most 2 tasks may be pending")
        assert int(full.headers["retry-after"]) >= 1
        busy = client.post("/api/v1/tts/sync", text="a", prompt_audio_id="voice_01")
        refused(busy, 503)
        assert int(busy.headers["retry-after"]) >= 1


def test_a_failure_of_the_engine_is_told_without_its_details() -> None:
    with running(speaking(RuntimeError("a secret in /a/path")), max_task_attempts=1) as live:
        client = Client(live)
        task = client.ended(client.submit())
        assert (task["status"], "secret" in task["message"], "/a/path" in task["message"]) == ("failed", False, False)
        message = refused(client.post("/api/v1/tts/sync", text="a", prompt_audio_id="voice_01"), 500)
        assert "secret" not in message


def test_uploads_and_audio_expire(tmp_path: Path, clock: Clock) -> None:
    gate = Gate()
    with running(by_text({"slow": [tone(0.1), gate]}), data_dir=tmp_path, task_lease_s=10**6) as live:
        client = Client(live)
        voice = client.upload().json()["file_id"]
        slow = client.submit("slow", prompt_audio_id=voice)
        eventually(lambda: client.task(slow)["status"] == "processing")
        clock.advance(3601)
        assert client.get(f"/api/v1/file/{voice}").status_code == 200, "a running task needs it"
        gate.open()
        assert client.ended(slow)["status"] == "completed"
        refused(client.get(f"/api/v1/file/{voice}"), 404)
        refused(client.post("/api/v1/tts", text="a", prompt_audio_id=voice), 404)
    clock.advance(86401)
    with running(by_text_or_tone(), data_dir=tmp_path) as live:
        eventually(lambda: files_below(tmp_path) == [])
        refused(Client(live).get(f"/api/v1/task/{slow}"), 404)


def test_metrics_tell_the_truth() -> None:
    scripts: dict[str, list[Step]] = {"good": [tone(0.5)], "slow": [*SLOW[:40], FOREVER], "bad": [RuntimeError("x")]}
    with running(by_text(scripts), max_task_attempts=1) as live:
        client = Client(live)
        before = client.metrics()
        assert before["speech_jobs", ("pending",)] == 0
        client.upload()
        good, bad = client.submit("good"), client.submit("bad")
        client.ended(good)
        client.ended(bad)
        whole = client.post("/synthesize", text="good")
        leaving = RawClient(live.port, "/synthesize_stream", {"text": "slow"})
        leaving.read(1000)
        during = client.metrics()
        assert during["speech_queue_length", ("holding",)] == 1
        leaving.close()
        client.get("/no/such/path")
        client.session.head(client.url + "/model_info", timeout=120)
        expected = {
            ("speech_disconnects_total", ("/synthesize_stream",)): 1,
            ("speech_requests_total", ("POST", "/synthesize", "200")): 1,
            ("speech_requests_total", ("POST", "/api/v1/tts", "200")): 2,
            ("speech_requests_total", ("GET", "none", "404")): 1,
            ("speech_requests_total", ("HEAD", "/model_info", "200")): 1,
        }
        eventually(lambda: expected.items() <= client.metrics().items())
        after = client.metrics()
        assert after["speech_queue_length", ("holding",)] == 0
        assert after["speech_jobs", ("completed",)] == 1
        assert after["speech_jobs", ("failed",)] == 1
        assert after["speech_response_bytes_total", ("/synthesize",)] == len(whole.content)
        assert after["speech_response_bytes_total", ("/model_info",)] == 0
        assert not [key for key in after if good in str(key)], "a series for each task"
        assert after["speech_audio_seconds_total", ("job",)] == pytest.approx(0.5)
        assert after["speech_audio_seconds_total", ("live",)] >= 0.6
        assert after["speech_wait_seconds_count", ("live",)] == 2
        assert after["speech_wait_seconds_count", ("job",)] == 2
        assert after["speech_first_audio_seconds_count", ("job",)] == 1
        assert after["speech_real_time_factor_count", ("live",)] == 2
        assert [key for key in after if key[0] == "speech_disconnects_total"] == [
            ("speech_disconnects_total", ("/synthesize_stream",))
        ]


def test_other_calls_are_answered_while_large_uploads_come_in(client: Client) -> None:
    content = made_wav(120.0)
    uploads: list[requests.Response] = []
    answers = 0

    def pieces() -> Iterator[bytes]:
        """An upload that is held up in its middle until three calls have been answered."""
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        yield content[: len(content) // 2]
        enough = answers + 3
        eventually(lambda: answers >= enough)
        yield content[len(content) // 2 :] + b"\r\n--b--\r\n"

    def upload() -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        url = f"{client.url}/api/v1/upload/audio"
        uploads.extend(requests.post(url, data=pieces(), headers=headers, timeout=180) for _ in range(4))

    threads = [threading.Thread(target=upload) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert requests.get(f"{client.url}/api/v1/tasks", timeout=120).status_code == 200
        answers += 1
    assert {answer.status_code for answer in uploads} == {200}
    assert answers > len(uploads) == 8
