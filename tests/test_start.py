"""What is installed, and what a server says that lacks it."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.children import end, handles, spawn
from tests.support.process import server_process
from tests.support.server import eventually

ROOT = Path(__file__).parent.parent
PYTHON = """#!/bin/sh
# Stands for Python and for what it makes: a venv holds this file, pip writes its arguments down.
case "$1 $2" in
    "-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip") case "$*" in *--editable*) echo "$@" >>installed ;; esac ;;
    "-m streaming_server.cli") [ "$3" = extras ] && exec {python} "$@"; echo "$@" >>started ;;
    --version*) echo Python 3.11.0 ;;
esac
"""
WITHOUT = "import sys; sys.modules[{0!r}] = None; from streaming_server.cli import main; sys.exit(main({1!r}))"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The start script with all that it reads, and an interpreter that does nothing."""
    for name in ("start_api.sh", "pyproject.toml", "constraints.txt", "scripts/install"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python").write_text(PYTHON.replace("{python}", sys.executable))
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.yaml").touch()
    return tmp_path


def start(folder: Path, *arguments: str, **environment: str) -> str:
    """What was installed."""
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHON": str(folder / "python")}
    subprocess.run(
        ["./start_api.sh", *arguments],
        cwd=folder,
        env=clean | environment,
        check=True,
        capture_output=True,
        timeout=180,
    )
    written = folder / "installed"
    installed = written.read_text() if written.exists() else ""
    written.unlink(missing_ok=True)
    return installed


def install(folder: Path, *extras: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(folder / "python")}
    command = ["scripts/install", *extras]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, text=True)


@pytest.mark.parametrize(
    ("environment", "extras"),
    [
        ({}, "hibari,espeak"),
        ({"CELERY_BROKER_URL": "redis://localhost"}, "hibari,espeak,celery"),
        ({"CELERY_BROKER_URL": "amqp://localhost", "MODEL_DIR": "model"}, "indextts,celery"),
        ({"DATABASE_URL": "postgresql://localhost/a"}, "hibari,espeak,postgresql"),
        ({"DATABASE_URL": "sqlite:///a.db"}, "hibari,espeak"),
        ({"FILES_URL": "s3://bucket"}, "hibari,espeak,s3"),
        ({"WYOMING_PORT": "10200", "MCP": "true"}, "hibari,espeak,wyoming,mcp"),
        (
            {"CELERY_BROKER_URL": "redis://a", "DATABASE_URL": "postgres://a/b", "FILES_URL": "s3://c"},
            "hibari,espeak,celery,postgresql,s3",
        ),
    ],
)
def test_the_start_script_installs_what_its_variables_need(
    folder: Path, environment: dict[str, str], extras: str
) -> None:
    base, more = start(folder, "--port", "0", **environment).splitlines()
    assert base.endswith("--editable .")
    assert more.endswith(f"--editable .[{extras}]")
    assert (folder / "started").read_text() == "-m streaming_server.cli serve --port 0\n"


def test_a_broker_that_is_set_later_is_installed_for_later(folder: Path) -> None:
    assert "[hibari,espeak]" in start(folder)
    assert start(folder) == ""
    assert "[celery]" in start(folder, CELERY_BROKER_URL="redis://localhost")
    assert start(folder, CELERY_BROKER_URL="redis://localhost") == ""


def test_starts_at_the_same_time_install_once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One of them through a link in another folder."""
    link = tmp_path_factory.mktemp("bin") / "start"
    link.symlink_to(folder / "start_api.sh")
    python = (folder / "python").read_text()
    waiting = 'echo "$@" >>installed; while [ ! -e done ]; do sleep 0.01; done'
    (folder / "python").write_text(python.replace('echo "$@" >>installed', waiting))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHON": str(folder / "python")}
    scripts = [
        spawn([path], cwd=path.parent, env=environment, stderr=subprocess.DEVNULL)
        for path in (folder / "start_api.sh", link)
    ]

    def installations() -> list[str]:
        return (folder / "installed").read_text().splitlines() if (folder / "installed").exists() else []

    def is_waiting_for_the_other() -> bool:
        found = []
        for script in scripts:
            with suppress(psutil.NoSuchProcess):  # a child that has just ended
                found += [child.name() for child in psutil.Process(script.pid).children(recursive=True)]
        return "flock" in found and len(installations()) == 1

    try:
        eventually(lambda: is_waiting_for_the_other() or len(installations()) == len(scripts))
        (folder / "done").touch()
        assert [script.wait(180) for script in scripts] == [0, 0]
    finally:
        for script in scripts:
            end(script)
    base, more = installations()
    assert base.endswith("--editable .")
    assert more.endswith("--editable .[hibari,espeak]")


def test_a_python_that_is_too_new_for_an_extra_installs_nothing(folder: Path) -> None:
    newest = '-c*) exec {python} -c "import sys; sys.version_info = (3, 14, 0); $2" ;; --version*) echo Python 3.14.0'
    script = (folder / "python").read_text()
    (folder / "python").write_text(
        script.replace("--version*) echo Python 3.11.0", newest.format(python=sys.executable))
    )
    refused = install(folder, "espeak", "kokoro")
    assert refused.returncode == 1
    assert refused.stderr.startswith("the extra kokoro needs Python before 3.13, not Python 3.14.0 (name another")
    assert not (folder / "installed").exists()
    assert install(folder, "espeak", "pocket").returncode == 0
    assert (folder / "installed").read_text().strip().endswith(".[espeak,pocket]")


def test_a_venv_of_another_python_is_kept(folder: Path) -> None:
    assert install(folder, "espeak").returncode == 0
    (folder / "python").write_text((folder / "python").read_text().replace("Python 3.11.0", "Python 3.12.0"))
    refused = install(folder, "espeak", "celery")
    assert refused.returncode == 1
    expected = ".venv has Python 3.11.0, not Python 3.12.0; delete .venv to install with the other one\n"
    assert refused.stderr == expected
    # Without PYTHON, the one of the environment installs.
    (folder / ".venv/bin/python").write_text(
        (folder / ".venv/bin/python")
        .read_text()
        .replace("in\n", f'in\n    "-c import sys; print(sys.executable)") echo {folder}/.venv/bin/python ;;\n', 1)
    )
    subprocess.run(["scripts/install", "espeak", "celery"], cwd=folder, env={"PATH": os.environ["PATH"]}, check=True)
    installed = [line.rpartition(" ")[2] for line in (folder / "installed").read_text().splitlines()]
    assert installed == [".[espeak]", ".[celery]"]


def test_a_missing_model_installs_no_extra(folder: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as ended:
        start(folder, "--model_dir", "none")
    assert ended.value.returncode == 2
    assert ended.value.stderr.decode().splitlines()[-1].startswith("streaming-server: MODEL_DIR=none: ")
    assert (folder / "installed").read_text().splitlines()[-1].endswith("--editable .")


@pytest.mark.parametrize(
    ("ending", "status", "sentence"),
    [("kill -KILL $$", 137, "the server was ended by SIGKILL"), ("exit 3", 3, "the server ended with exit code 3")],
)
def test_the_start_script_says_what_ended_the_server(folder: Path, ending: str, status: int, sentence: str) -> None:
    (folder / "python").write_text((folder / "python").read_text().replace('echo "$@" >>started', ending))
    with pytest.raises(subprocess.CalledProcessError) as ended:
        start(folder)
    assert ended.value.returncode == status
    assert f"start_api.sh: {sentence}" in ended.value.stderr.decode()


@contextmanager
def started(folder: Path, code: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The start script, with a server that runs this code, once the code has printed a line."""
    server = f"exec {sys.executable} -c '{code}'"
    (folder / "python").write_text((folder / "python").read_text().replace('echo "$@" >>started', server))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHON": str(folder / "python")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    script = spawn(["./start_api.sh"], cwd=folder, env=environment, **pipes | options)
    assert script.stdout is not None
    with script:
        try:
            assert script.stdout.readline() == b"1\n"
            eventually(lambda: handles(script, signal.SIGHUP))  # the last trap that the script sets
            yield script
        finally:
            end(script)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system has setsid")
def test_the_start_script_passes_signals_on(folder: Path) -> None:
    """Ctrl+C ends the server gracefully, and the second one at once. An end that was asked for is not reported."""
    code = """import os, signal
signal.alarm(20)
def end(number, frame):
    os.write(1, b"%d\\n" % number)
    if number == signal.SIGINT:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
os.write(1, b"1\\n")
while True:
    signal.pause()
"""
    terminal, other_end = pty.openpty()
    try:
        control = partial(fcntl.ioctl, other_end, termios.TIOCSCTTY, 0)
        with started(folder, code, stdin=other_end, preexec_fn=control) as script:
            assert script.stdout is not None
            assert script.stderr is not None
            os.write(terminal, b"\x03")
            assert script.stdout.readline() == b"15\n"
            script.terminate()
            assert script.stdout.readline() == b"15\n"
            os.write(terminal, b"\x03")
            assert script.stdout.read() == b"2\n"
            assert script.wait(180) == 128 + signal.SIGTERM
            assert b"start_api.sh:" not in script.stderr.read()
    finally:
        os.close(terminal)
        os.close(other_end)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system ends a child with its parent")
def test_a_start_script_that_is_killed_leaves_no_server(folder: Path) -> None:
    code = "import signal; signal.alarm(600); signal.signal(15, lambda *_: exit(print(2))); print(1, flush=True)"
    code += "; signal.pause()"
    with started(folder, code) as script:
        script.kill()
        script.wait()
        assert script.stdout is not None
        assert script.stdout.read() == b"2\n"


@pytest.mark.parametrize(
    ("module", "command", "environment", "sentence"),
    [
        ("celery", ["serve", "--port", "0"], {"CELERY_BROKER_URL": "redis://a"}, "CELERY_BROKER_URL needs celery"),
        ("celery", ["worker"], {"CELERY_BROKER_URL": "redis://a"}, "a worker requires celery"),
        ("boto3", ["serve", "--port", "0"], {"FILES_URL": "s3://bucket"}, "FILES_URL needs boto3"),
        ("none", ["worker"], {}, "CELERY_BROKER_URL is not set"),
        (
            "none",
            ["worker"],
            {"FILES_URL": "ftp://a", "CELERY_BROKER_URL": "redis://a"},
            "FILES_URL=ftp://a: must be s3://",
        ),
    ],
)
def test_what_is_missing_is_a_sentence(
    module: str, command: list[str], environment: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(module, command)],
        env=os.environ | {"DATA_DIR": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"streaming-server: {sentence}")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.slow
def test_without_celery_the_server_serves(tmp_path: Path) -> None:
    code = WITHOUT.format("celery", ["serve"])
    with server_process(sys.executable, "-c", code, DATA_DIR=str(tmp_path)) as server:
        body = {"workflow_config": {"workflow_chain": ["indextts.health_check"]}}
        assert httpx.post(server.url + "/v1/workflows", json=body, timeout=120).json()["status"] == "healthy"
