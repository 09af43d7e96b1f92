"""The commands of the README and of docs/api.md, run as written against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streaming_server.audio.decode import decode_native
from tests.support.process import ServerProcess, server_process

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/api.md")
STARTS = ("curl ", ".venv/bin/streaming-server ")
PYTHON = re.compile("```python\n(.*?)```", re.DOTALL)
BLOCKS = re.compile("```sh\n(.*?)```", re.DOTALL)


def commands(name: str) -> list[str]:
    """Returns single commands, and whole blocks where a line uses a variable that an earlier one sets."""
    found = []
    for block in BLOCKS.findall((ROOT / name).read_text()):
        lines = [block] if "=$(curl" in block else block.splitlines()
        found += [line for line in lines if "=$(curl" in line or line.startswith(STARTS)]
    return [command for command in found if " download " not in command]  # tests/test_downloads.py


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[ServerProcess]:
    with server_process(DATA_DIR=str(data_dir), MCP="true") as running:
        yield running


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def test_the_api_page_shows_every_route() -> None:
    text = "\n".join(commands("docs/api.md"))
    for path in (
        *("/synthesize_stream_opus --data", "/synthesize_stream ", "/synthesize ", "/synthesize_simple"),
        *("/opus_queue_status", "/reference_audios", "/download_reference_audio/0", "/health", "/model_info"),
        *("/test ", "/test_stream", "/v1/audio/speech", "/v1/audio/voices", "/v1/models", "/tts_url", "/tts "),
        *("/info", "/voices", "/scenes", "/generate ", "/generate-stream", "/generate-upload"),
        *("/api/v1/upload/audio", "/api/v1/file/", "/api/v1/tts ", "/api/v1/tts/sync", "/api/v1/task/"),
        *("/api/v1/tasks", "/api/v1/audio/", "/api/v1/health", "/metrics", "-X DELETE"),
        *("/v1/workflows ", "/v1/workflows/status/", "/monitoring/gpu-lock/health", "/monitoring/heartbeat/all"),
        "/monitoring/statistics",
    ):
        assert path.strip() in text, path


def test_both_readmes_have_the_same_content() -> None:
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))
    levels = re.compile("^(#+) ", re.MULTILINE)
    fenced = re.compile("```(?:sh|python)\n.*?```", re.DOTALL)
    first_cells = re.compile(r"^\| (`[^|]*`) \|", re.MULTILINE)
    links = re.compile(r"\]\((?!README)([^)]+?)(?:\.zh)?(?:\.md)?\)")
    assert levels.findall(english) == levels.findall(chinese)
    assert fenced.findall(english) == fenced.findall(chinese)
    assert english.count("\n| ") == chinese.count("\n| ")
    assert first_cells.findall(english) == first_cells.findall(chinese)
    assert set(links.findall(english)) == set(links.findall(chinese))


def test_the_links_of_the_readmes_and_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "checkpoints" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "example",
    [block for name in PAGES for block in re.findall("```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)],
)
def test_a_python_example_of_the_documentation(example: str, server: ServerProcess, tmp_path: Path) -> None:
    address = server.url.partition("://")[2]
    program = example.replace("localhost:8000", address)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=240)
    assert bool(list(tmp_path.iterdir())) == ("open(" in example or "stream_to_file" in example)
    for path in tmp_path.iterdir():
        samples, rate_hz = decode_native(path) if path.suffix != ".pcm" else (np.fromfile(path, "<i2"), 24000)
        assert samples.size / rate_hz > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [pytest.param(command, id=command[:60]) for name in PAGES for command in commands(name)]
)
def test_a_command_of_the_documentation(command: str, server: ServerProcess, data_dir: Path, tmp_path: Path) -> None:
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
        timeout=240,
    )
    assert result.returncode == 0, result.stderr.decode() + result.stdout.decode()
    written = list(tmp_path.iterdir())
    assert bool(written) == (" -o " in command)
    for path in written:
        if path.suffix != ".pcm":
            samples, rate_hz = decode_native(path)
            assert samples.size / rate_hz > 0.3
    if not written and "ffplay" not in command:
        assert (result.stdout or result.stderr).strip()
