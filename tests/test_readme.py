"""The README's commands, as they stand there, against a running server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming_server.audio.decode import decode_native
from tests.support.process import ServerProcess, server_process

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh.md")
STARTS = ("curl ", ".venv/bin/streaming-server ")
BLOCKS = re.compile("```sh\n(.*?)```", re.DOTALL)


def commands(name: str) -> list[str]:
    """Lines that stand alone, and whole blocks whose lines go on with what earlier ones found."""
    found = []
    for block in BLOCKS.findall((ROOT / name).read_text()):
        lines = [block] if "=$(curl" in block else block.splitlines()
        found += [line for line in lines if "=$(curl" in line or line.startswith(STARTS)]
    return found


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[ServerProcess]:
    with server_process(DATA_DIR=str(data_dir)) as running:
        yield running


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", READMES)
def test_both_readmes_show_every_route(name: str) -> None:
    text = "\n".join(commands(name))
    for path in (
        *("/synthesize_stream_opus", "/synthesize_stream ", "/synthesize ", "/synthesize_simple", "/opus_queue_status"),
        *("/v1/audio/speech", "/v1/audio/voices", "/v1/models", "/tts_url", "/tts ", "/synthesize_stream_opus --data"),
        *("/info", "/voices", "/scenes", "/generate ", "/generate-stream", "/generate-upload"),
        *(
            "/api/v1/upload/audio",
            "/api/v1/file/",
            "/api/v1/tts ",
            "/api/v1/tts/sync",
            "/api/v1/task/",
            "/api/v1/tasks",
        ),
        *("/api/v1/audio/", "/api/v1/health", "/metrics", "-X DELETE http://localhost:8000/api/v1/task/"),
        *("/v1/workflows ", "/v1/workflows/status/", "/monitoring/gpu-lock/health", "/monitoring/heartbeat/all"),
        *("/monitoring/statistics",),
        *("/reference_audios", "/download_reference_audio/0", "/health", "/model_info", "/test ", "/test_stream"),
    ):
        assert path.strip() in text, path


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [pytest.param(command, id=command[:60]) for name in READMES for command in commands(name)]
)
def test_a_command_of_the_readme(command: str, server: ServerProcess, data_dir: Path, tmp_path: Path) -> None:
    here = command.replace("http://localhost:8000", server.url).replace("@reference", f"@{ROOT}/reference")
    here = here.replace(".venv/bin/streaming-server", f"{sys.executable} -m streaming_server.cli")
    quiet = {
        "SDL_AUDIODRIVER": "dummy",
        "REFERENCE_AUDIO_DIR": str(ROOT / "reference_audios"),
        "DATA_DIR": str(data_dir),
    }
    result = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", here.replace("curl ", "curl --fail-with-body ")],
        cwd=tmp_path,
        env=os.environ | quiet,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr.decode() + result.stdout.decode()
    written = list(tmp_path.iterdir())
    assert bool(written) == (" -o " in command and " -o - " not in command)
    for path in written:
        if path.suffix != ".pcm":
            samples, rate_hz = decode_native(path)
            assert samples.size / rate_hz > 0.3
    if not written and "ffplay" not in command:
        assert (result.stdout or result.stderr).strip()
