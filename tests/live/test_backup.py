"""The backup and the restore of ``docs/operations.md``, done by the commands that stand there."""

from __future__ import annotations

import re
import shlex
import shutil
import sqlite3
from pathlib import Path

from tests.support.fakes import FakeEngine, tone
from tests.support.server import RECORDINGS, eventually, running

ROOT = Path(__file__).parents[2]


def test_a_copy_made_while_the_server_runs_has_all_tasks_and_their_audio(tmp_path: Path) -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    [statement] = re.findall(r'sqlite3 data/server\.db "(VACUUM INTO .*?)"', manual)
    [copy] = re.findall(r"^cp -a (.*)$", manual, re.MULTILINE)
    data, backup = tmp_path / "data", tmp_path / "backup"
    backup.mkdir()
    with running(FakeEngine(lambda _: [tone(0.5)]), data_dir=data) as live:
        voice = ("voice.wav", (RECORDINGS / "voice_05.wav").read_bytes(), "audio/wav")
        upload = live.client.post("/api/v1/upload/audio", files={"file": voice}).raise_for_status().json()
        body = {"text": "Keep this.", "prompt_audio_id": "voice_01"}
        task_id = live.post("/api/v1/tts", body).raise_for_status().json()["task_id"]
        eventually(lambda: live.get(f"/api/v1/task/{task_id}").json()["status"] == "completed")
        audio = live.get(f"/api/v1/audio/{task_id}").content
        with sqlite3.connect(data / "server.db") as connection:
            connection.execute(statement.replace("backup/", f"{backup}/"))
        *sources, target = shlex.split(copy)
        assert target == "backup/"
        for source in sources:
            folder = data / Path(source).relative_to("data")
            shutil.copytree(folder, backup / folder.name)
    shutil.rmtree(data)
    with running(FakeEngine(), data_dir=backup) as restored:
        assert restored.get(f"/api/v1/task/{task_id}").json()["status"] == "completed"
        assert restored.get(f"/api/v1/audio/{task_id}").content == audio
        again = restored.post("/api/v1/tts", {"text": "Again.", "prompt_audio_id": upload["file_id"]})
        assert again.status_code == 200, again.text
