"""The test run itself: it fails where a process outlives it, and asks before it installs packages."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
RUN_TESTS = ROOT / "run_tests.sh"
LEAVING = """
import subprocess, time
from pathlib import Path

def test_leaves_two():
    command = "setsid sleep 1000 & echo $!; sleep 1000 & echo $!"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE) as process:
        for line in (process.stdout.readline(), process.stdout.readline()):
            while Path(f"/proc/{int(line)}/comm").read_text() != "sleep\\n":
                time.sleep(0.01)
        process.stdout.close()
        assert process.wait() == 0
"""


INTERRUPTING = """
import signal
from tests.support.children import end, spawn

def test_ends():
    assert end(spawn(["sleep", "1000"]), signal.SIGINT) == -signal.SIGINT
"""


def run(folder: Path, test: str, *before: str, workers: str) -> subprocess.CompletedProcess[str]:
    """Run a test in a separate run; ``before`` is the command prefix."""
    (folder / "test_one.py").write_text(test)
    options = ["-p", "xdist", "-p", "tests.conftest", "-p", "no:cacheprovider", "-n", workers, "--rootdir", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [*before, sys.executable, "-m", "pytest", *options, str(folder)],
        env=environment | {"PYTHONPATH": str(ROOT), "TEST_LEFTOVERS_S": "0.5", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_in_the_background_can_interrupt_its_children(tmp_path: Path) -> None:
    background = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")
    ran = run(tmp_path, INTERRUPTING, *background, workers="1")
    assert ran.returncode == 0, ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_processes_that_outlive_the_run_fail_it_and_are_named_and_killed(workers: str, tmp_path: Path) -> None:
    ran = run(tmp_path, LEAVING, workers=workers)
    assert ran.returncode == 1, ran.stdout
    left = set(re.findall(r"process (\d+), started by \S+::test_leaves_two \(call\): sleep 1000", ran.stdout))
    assert len(left) == 2, ran.stdout
    assert "1 passed, 1 error" in ran.stdout.splitlines()[-1]
    assert not any(psutil.pid_exists(int(pid)) for pid in left)


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment of an unprivileged user whose machine has none of the packages; `sudo` writes a file."""
    (tmp_path / "bin").mkdir()
    for name, script in {"id": "echo 1000", "sudo": f"touch {tmp_path}/sudo-was-used", "ldconfig": ""}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("bash", "dirname", "env", "ls", "grep", "touch", "sh"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    return {"PATH": str(tmp_path / "bin")}


def test_without_a_terminal_the_command_that_installs_packages_is_printed(bare: dict[str, str], tmp_path: Path) -> None:
    ran = subprocess.run([RUN_TESTS], env=bare, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "sudo apt-get install opus-tools ffmpeg" in ran.stderr
    assert not (tmp_path / "sudo-was-used").exists()


@pytest.mark.parametrize(("answer", "used"), [("\n", False), ("n\n", False), ("y\n", True)])
def test_on_a_terminal_it_asks_before_it_uses_sudo(
    answer: str, used: bool, bare: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "install_all").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "scripts" / "install_all").chmod(0o755)
    shutil.copy(RUN_TESTS, tmp_path)
    terminal, of_process = pty.openpty()
    os.write(terminal, answer.encode())
    ran = subprocess.run(
        [tmp_path / "run_tests.sh"], env=bare, stdin=of_process, capture_output=True, text=True, check=False
    )
    os.close(of_process)
    os.close(terminal)
    assert 'run "sudo apt-get install opus-tools' in ran.stderr
    assert ran.returncode == (3 if used else 1), ran.stderr
    assert (tmp_path / "sudo-was-used").exists() == used
