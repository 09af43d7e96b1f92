"""Workers as real processes with a real Redis and a real RabbitMQ, including kills and restarts."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from streaming_server.audio.decode import decode_native
from tests.support.brokers import Broker, RabbitMQ, Redis, Service
from tests.support.children import end, spawn
from tests.support.fleet import CLI, Fleet, fleet, speech
from tests.support.process import ROOT
from tests.support.scripted import BREAKS_THE_DEVICE, SCRIPTED, killed_at, takes, until
from tests.support.server import eventually

SPEECH, HEALTH = "indextts.generate_speech", "indextts.health_check"
INFO, PRESETS = "indextts.get_model_info", "indextts.list_voice_presets"
KILLS = int(os.environ.get("WORKER_KILLS", "3"))

pytestmark = pytest.mark.slow


class Pair:
    """`streaming-server serve` and `streaming-server worker` in one folder, configured with the broker only."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        self.folder = folder
        self.broker_url = broker_url
        common = {"CELERY_BROKER_URL": broker_url, "REFERENCE_AUDIO_DIR": str(ROOT / "reference_audios")}
        command = (sys.executable, "-m", "streaming_server.cli")
        path = {"PYTHONPATH": str(ROOT)}
        self.server = Service(folder, *command, "serve", "--host", "127.0.0.1", "--port", "0", **common, **path)
        self.worker = Service(folder, *CLI, **common, **path)
        found: list[str] = []

        def listening() -> bool:
            assert self.server.process.poll() is None, self.server.log()
            found[:] = re.findall(r"running on (http://127\.0\.0\.1:\d+)", self.server.log())
            return bool(found)

        eventually(listening, within_s=180)
        self.client = httpx.Client(base_url=found[0], timeout=180)
        eventually(lambda: self.get("/api/v1/monitoring/statistics")["workers"]["total"] == 1, within_s=180)

    def get(self, path: str) -> dict[str, Any]:
        body: dict[str, Any] = self.client.get(path).json()
        return body

    def run(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.post("/v1/workflows", json=body)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def pipeline(self, *chains: list[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
        """The results that another program receives for its chains."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.pipeline", self.broker_url],
            input="".join(json.dumps(chain) + "\n" for chain in chains),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    def stop(self) -> None:
        self.client.close()
        self.worker.stop()
        self.server.stop()


@pytest.fixture(scope="class")
def pair(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    running = Pair(tmp_path_factory.mktemp("pair"), broker.url)
    yield running
    running.stop()


def ask(name: str) -> dict[str, Any]:
    return {"workflow_config": {"workflow_chain": [name]}}


class TestPair:
    """One server and one worker, which end before others on the same broker begin."""

    def test_every_member_is_done_by_the_worker(self, pair: Pair) -> None:
        spoken = pair.run(speech("Hello, world. 你好。", "out/every.wav"))
        samples, rate_hz = decode_native(pair.folder / "data/workflows/out/every.wav")
        assert (spoken["status"], spoken["output_path"]) == ("success", "/share/out/every.wav")
        assert spoken["duration"] == pytest.approx(samples.size / rate_hz)
        assert spoken["sample_rate"] == rate_hz
        assert spoken["model_info"]["model_type"] == "hibari"
        assert pair.run(ask(HEALTH))["status"] == "healthy"
        assert pair.run(ask(INFO))["model_info"]["capabilities"]["text_to_speech"] is True
        assert pair.run(ask(PRESETS))["presets"]["default"]["description"] == "默认语音"
        owners = {task["worker_id"] for task in pair.get("/api/v1/monitoring/heartbeat/all")["tasks"]}
        assert len(owners) == 1
        assert f"-{pair.worker.process.pid}-" in owners.pop()

    def test_a_chain_of_four_goes_through_the_worker_in_its_order(self, pair: Pair) -> None:
        accepted = pair.client.post(
            "/v1/workflows", json=speech("Four.", "out/four.wav", HEALTH, INFO, PRESETS), params={"wait": "false"}
        ).json()
        path = f"/v1/workflows/status/{accepted['workflow_id']}"
        eventually(lambda: pair.get(path)["status"] == "completed")
        stages = pair.get(path)["stages"]
        assert [stage["name"] for stage in stages] == [HEALTH, INFO, PRESETS, SPEECH]
        began = [datetime.fromisoformat(stage["started_at"]) for stage in stages]
        assert began == sorted(began)
        assert (pair.folder / "data/workflows/out/four.wav").is_file()

    def test_tasks_of_the_other_dialect_are_the_workers_too(self, pair: Pair) -> None:
        task = pair.client.post("/api/v1/tts", json={"text": "A task.", "prompt_audio_id": "voice_02"}).json()[
            "task_id"
        ]
        eventually(lambda: pair.get(f"/api/v1/task/{task}")["status"] == "completed")
        assert pair.client.get(f"/api/v1/audio/{task}").content[:4] == b"RIFF"
        beats = pair.get("/api/v1/monitoring/heartbeat/all")["tasks"]
        (owner,) = (beat["worker_id"] for beat in beats if beat["task_id"] == task)
        assert f"-{pair.worker.process.pid}-" in owner

    def test_another_program_builds_chains_from_names_and_payload(self, pair: Pair) -> None:
        body = speech("A chain from elsewhere.", "out/elsewhere.wav")
        body["workflow_config"]["workflow_chain"] = ["ffmpeg.extract_audio", SPEECH]
        broken = speech("Nothing.", "../outside.wav")
        first, asking_first, twice, alone, refused, stopped, nonsense = pair.pipeline(
            [(SPEECH, [body]), (HEALTH, []), (INFO, []), (PRESETS, [])],
            [(HEALTH, [speech("At the end.", "out/end.wav")]), (INFO, []), (PRESETS, []), (SPEECH, [])],
            [(SPEECH, [speech("Twice.", "out/twice.wav")]), (SPEECH, [])],
            [(HEALTH, [])],
            [(SPEECH, [broken])],
            [(SPEECH, [broken]), (HEALTH, [])],
            [(SPEECH, [{"status": "healthy"}])],
        )
        assert first["result"]["total_count"] == 14
        assert decode_native(pair.folder / "data/workflows/out/elsewhere.wav")[0].size
        assert asking_first["result"]["output_path"] == "/share/out/end.wav"
        assert asking_first["result"]["text_length"] == len("At the end.")
        assert twice["result"]["output_path"] == "/share/out/twice.wav"
        assert alone["result"]["gpu_lock"] == "available"
        for failed in (refused, stopped, nonsense):
            assert failed["raised"] == "TaskFailed"
            assert json.loads(failed["text"])["error_code"] == "INVALID_INPUT"
        assert "output_path" in refused["text"]
        made = pair.get(f"/v1/workflows/status/{asking_first['result']['workflow_id']}")
        assert made["status"] == "completed"

    def test_a_failure_on_the_worker_has_its_code_and_stops_the_chain(self, pair: Pair) -> None:
        (pair.folder / "data/workflows").mkdir(exist_ok=True)
        (pair.folder / "data/workflows/noise.wav").write_bytes(b"no recording at all")
        body = speech("Hello.", "out/never.wav", reference_audio="/share/noise.wav")
        body["workflow_config"]["workflow_chain"] = [HEALTH, SPEECH, INFO]
        answer = pair.client.post("/v1/workflows", json=body)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_INPUT")
        assert SPEECH in answer.json()["error"]
        status = pair.get(f"/v1/workflows/status/{answer.json()['workflow_id']}")
        assert [stage["status"] for stage in status["stages"]] == ["completed", "failed", "skipped"]
        assert (status["status"], status["current_stage"]) == ("failed", SPEECH)
        assert not (pair.folder / "data/workflows/out/never.wav").exists()


def test_monitoring_tells_of_the_real_workers(broker: Broker, tmp_path: Path) -> None:
    with fleet(broker, TASK_LEASE_S="60") as many:
        many.start(2)
        base = "/api/v1/monitoring"
        assert many.server.get(f"{base}/statistics").json()["workers"] == {"total": 2, "active": 0, "idle": 2}
        accepted = many.submit(until(tmp_path / "end"), "long.wav")
        eventually(lambda: many.is_running(accepted["workflow_id"]))
        locks = many.server.get(f"{base}/gpu-lock/health").json()
        assert (locks["total_locks"], locks["active_locks"]) == (2, 1)
        (locked,) = (lock for lock in locks["locks"] if lock["locked"])
        assert locked["expires_at"] > locked["last_acquired"] if locked["last_acquired"] else locked["expires_at"]
        (beat,) = many.server.get(f"{base}/heartbeat/all").json()["tasks"]
        assert (beat["task_id"], beat["task_name"], beat["status"]) == (accepted["task_id"], SPEECH, "running")
        assert many.worker_of(accepted["task_id"]) in many.workers
        numbers = many.server.get(f"{base}/statistics").json()
        assert numbers["workers"] == {"total": 2, "active": 1, "idle": 1}
        (tmp_path / "end").touch()
        eventually(lambda: many.is_completed(accepted["workflow_id"]))
        numbers = many.server.get(f"{base}/statistics").json()["system"]
        assert (numbers["total_tasks"], numbers["successful_tasks"]) == (1, 1)
        assert numbers["avg_processing_time"] > 0
        for worker in many.workers:
            worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: not many.alive())


def test_a_killed_workers_task_is_finished_by_another(broker: Broker, tmp_path: Path) -> None:
    with fleet(broker) as many:
        many.start(2)
        accepted = many.submit(until(tmp_path / "end"), "killed.wav")
        eventually(lambda: many.is_running(accepted["workflow_id"]))
        victim = many.worker_of(accepted["task_id"])
        many.kill(victim)
        (tmp_path / "end").touch()
        eventually(lambda: many.is_completed(accepted["workflow_id"]))
        assert f"-{victim.process.pid}-" not in many.owner(accepted["task_id"])
        assert (many.data_dir / "workflows/killed.wav").is_file()


def test_a_text_that_kills_its_worker_is_tried_as_often_as_the_setting_says(redis: Redis, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with fleet(redis, TASK_LEASE_S="60", MAX_TASK_ATTEMPTS="2") as many:
        deadly, behind = many.submit(killed_at(gate), "deadly.wav"), many.submit(takes(0.1), "behind.wav")
        for _ in range(2):
            (worker,) = many.start(1)
            gate.touch()
            worker.process.wait(180)
            gate.unlink()
            many.workers.remove(worker)
            worker.stop()
        many.start(1)
        eventually(lambda: many.is_completed(behind["workflow_id"]))
        eventually(lambda: many.status(deadly["workflow_id"])["status"] == "failed")
        output = many.status(deadly["workflow_id"])["stages"][0]["output"]
        assert "the process that ran it died (attempt 2 of 2)" in output["error"]
        assert output["error_code"] == "PROCESSING_ERROR"


def test_kills_lose_no_task_and_none_has_two_outputs(redis: Redis) -> None:
    """`WORKER_KILLS=30` makes it long."""
    chance = random.Random(7)
    with fleet(redis, TASK_LEASE_S="60", MAX_TASK_ATTEMPTS="100") as many:
        count_finishes(many)
        many.start(2)
        tasks: list[str] = []
        for kill in range(KILLS):
            tasks += [many.submit(takes(0.5), f"out/{kill}-{index}.wav")["task_id"] for index in range(3)]
            time.sleep(chance.uniform(0.2, 2))
            running = [owner for state, owner in many.rows("state, owner") if state == "running"]
            busy = [worker for worker in many.workers if any(f"-{worker.process.pid}-" in owner for owner in running)]
            many.kill(chance.choice(busy or many.workers))
            many.start(1)
        eventually(lambda: all(state == "completed" for (state,) in many.rows("state")))
        assert sorted(finishes(many)) == sorted(tasks)
        made = sorted(path.name for path in (many.data_dir / "workflows/out").iterdir())
        assert made == sorted(f"{kill}-{index}.wav" for kill in range(KILLS) for index in range(3))
        for path in (many.data_dir / "workflows/out").iterdir():
            samples, rate_hz = decode_native(path)
            assert samples.size / rate_hz == pytest.approx(0.1)
        attempts = [attempts for (attempts,) in many.rows("attempts")]
        print(f"{KILLS} kills, {len(tasks)} tasks, {sum(number > 1 for number in attempts)} begun anew")


def test_a_broker_that_is_restarted_in_the_middle_loses_nothing(broker: Redis | RabbitMQ, tmp_path: Path) -> None:
    with fleet(broker, TASK_LEASE_S="60") as many:
        count_finishes(many)
        many.start(2)
        accepted = [many.submit(until(tmp_path / "end"), f"{index}.wav") for index in range(5)]
        eventually(lambda: ("running",) in many.rows("state"))
        broker.stop()
        accepted.append(many.submit(takes(0.2), "while-away.wav"))
        (tmp_path / "end").touch()
        broker.start()
        for one in accepted:
            eventually(lambda one=one: many.is_completed(one["workflow_id"]), within_s=180)  # type: ignore[misc]
        assert sorted(finishes(many)) == sorted(one["task_id"] for one in accepted)
        assert {attempts for (attempts,) in many.rows("attempts")} == {1}


def test_a_task_longer_than_every_timeout_runs_once(broker: Broker) -> None:
    length_s = 2 * RabbitMQ.PATIENCE_S + 1
    with fleet(broker, TASK_LEASE_S="60", TEST_VISIBILITY_S="2") as many:
        count_finishes(many)
        many.start(2)
        accepted = many.submit(takes(length_s), "long.wav")
        with pipeline(broker.url, [(SPEECH, [speech(takes(length_s), "other.wav")])]) as program:
            output, _ = program.communicate()
        assert json.loads(output)["result"]["output_path"] == "/share/other.wav"
        eventually(lambda: many.is_completed(accepted["workflow_id"]))
        assert [attempts for (attempts,) in many.rows("attempts")] == [1, 1]
        assert len(finishes(many)) == 2
        for index in range(4):  # the worker still accepts messages
            accepted = many.submit(takes(0.2), f"after-{index}.wav")
            eventually(lambda: many.is_completed(accepted["workflow_id"]))  # noqa: B023
        assert {attempts for (attempts,) in many.rows("attempts")} == {1}


def test_another_programs_chain_goes_on_where_a_worker_was_killed(broker: Broker, tmp_path: Path) -> None:
    with fleet(broker, TASK_LEASE_S="3", TEST_VISIBILITY_S="2") as many:
        count_finishes(many)
        many.start(2)
        chain = [(SPEECH, [speech(until(tmp_path / "end"), "a.wav")]), (SPEECH, []), (HEALTH, [])]
        with pipeline(broker.url, chain) as program:
            eventually(lambda: many.rows("state") == [("running",)])
            ((task_id,),) = many.rows("id")
            time.sleep(1.5)  # by now an acknowledgement that came too early would have left
            many.kill(many.worker_of(task_id))
            (tmp_path / "end").touch()
            output, _ = program.communicate()
        assert json.loads(output)["result"]["status"] == "healthy"
        assert [name for (name,) in many.rows("name")] == [SPEECH, SPEECH, HEALTH]
        assert len(finishes(many)) == 3


@contextmanager
def pipeline(broker_url: str, chain: Sequence[tuple[str, list[Any]]]) -> Iterator[subprocess.Popen[str]]:
    """Another program that runs a chain and prints the result."""
    program = spawn(
        [sys.executable, "-m", "tests.support.pipeline", broker_url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert program.stdin is not None
    program.stdin.write(json.dumps(chain) + "\n")
    program.stdin.flush()
    try:
        yield program
    finally:
        end(program)


def count_finishes(many: Fleet) -> None:
    """Add a database trigger that records each completed job."""
    with sqlite3.connect(many.data_dir / "server.db") as database:
        database.execute("CREATE TABLE finishes (job TEXT)")
        database.execute(
            "CREATE TRIGGER counted AFTER UPDATE OF state ON jobs WHEN NEW.state = 'completed' "
            "BEGIN INSERT INTO finishes VALUES (NEW.id); END"
        )


def finishes(many: Fleet) -> list[str]:
    with sqlite3.connect(many.data_dir / "server.db") as database:
        return [job for (job,) in database.execute("SELECT job FROM finishes")]


def test_a_worker_whose_device_fails_ends_and_leaves_its_task_to_the_next(redis: Redis) -> None:
    with fleet(redis, **SCRIPTED) as many:
        [worker] = many.start(1, CLI)
        accepted = many.submit(BREAKS_THE_DEVICE, "out/broken.wav")
        assert worker.process.wait(180) == 75
        assert "worker ends" in worker.log()
        assert many.rows("state, attempts") == [("pending", 1)], accepted
