"""systemd accepts the unit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from streaming_server.settings import Settings

UNIT = Path(__file__).parents[2] / "deploy" / "streaming-server.service"


def test_the_unit_is_valid(tmp_path: Path) -> None:
    here = Path(sys.executable).parent / "streaming-server"
    text = UNIT.read_text().replace("/opt/streaming-server/.venv/bin/streaming-server", str(here))
    assert f"ExecStart={here} serve" in text
    (tmp_path / UNIT.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)]
    result = subprocess.run(command, capture_output=True, check=False, text=True)
    assert [line for line in result.stderr.splitlines() if UNIT.name in line] == []
    assert result.returncode == 0, result.stderr


def test_every_address_family_that_the_server_uses_is_allowed() -> None:
    """AF_NETLINK for the list of network interfaces, which zeroconf reads."""
    (allowed,) = re.findall(r"^RestrictAddressFamilies=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert set(allowed.split()) == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}


def test_the_hubs_models_are_stored_in_the_folder_that_the_unit_may_write() -> None:
    lines = UNIT.read_text().splitlines()
    assert {"CacheDirectory=streaming-server", "Environment=HF_HOME=%C/streaming-server/huggingface"} <= set(lines)


def test_a_stop_waits_longer_than_the_server_does() -> None:
    found = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert found is not None
    assert int(found[1]) > Settings().shutdown_timeout_s


def test_a_server_that_dies_is_started_again_however_often() -> None:
    """A server with invalid settings exits with 2 and is not restarted."""
    lines = UNIT.read_text().splitlines()
    assert {"Restart=always", "StartLimitIntervalSec=0", "RestartPreventExitStatus=2"} <= set(lines)
