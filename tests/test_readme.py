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
from tests.live.process import ServerProcess, server_process

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh.md")
BLOCKS = re.compile("```sh\n(.*?)```", re.DOTALL)


def commands(name: str) -> list[str]:
    lines = [line for block in BLOCKS.findall((ROOT / name).read_text()) for line in block.splitlines()]
    return [line for line in lines if line.startswith(("curl ", ".venv/bin/streaming-server "))]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process() as running:
        yield running


@pytest.mark.parametrize("name", READMES)
def test_both_readmes_show_every_route(name: str) -> None:
    text = "\n".join(commands(name))
    for path in (
        *("/synthesize_stream_opus", "/synthesize_stream ", "/synthesize ", "/synthesize_simple", "/opus_queue_status"),
        *("/v1/audio/speech", "/v1/audio/voices", "/v1/models", "/tts_url", "/tts ", "/synthesize_stream_opus --data"),
        *("/v1/workflows ", "/v1/workflows/status/", "/monitoring/gpu-lock/health", "/monitoring/heartbeat/all"),
        *("/monitoring/statistics",),
        *("/reference_audios", "/download_reference_audio/0", "/health", "/model_info", "/test ", "/test_stream"),
    ):
        assert path.strip() in text, path


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [pytest.param(command, id=command[:60]) for name in READMES for command in commands(name)]
)
def test_a_command_of_the_readme(command: str, server: ServerProcess, tmp_path: Path) -> None:
    here = command.replace("http://localhost:8000", server.url)
    here = here.replace(".venv/bin/streaming-server", f"{sys.executable} -m streaming_server.cli")
    quiet = {"SDL_AUDIODRIVER": "dummy", "REFERENCE_AUDIO_DIR": str(ROOT / "reference_audios")}
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", here.replace("curl ", "curl --fail-with-body ", 1)],
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
        assert result.stdout.strip()
