"""HAProxy accepts the configuration; its behaviour is tested in `tests.live.test_gateway`."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from streaming_server.settings import Settings

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"


@pytest.mark.parametrize("environment", [{}, {"SERVERS": "localhost:8000"}], ids=["listed", "by name"])
def test_the_configuration_is_valid_without_a_warning(environment: dict[str, str]) -> None:
    command = ["haproxy", "-c", "-f", str(CONFIGURATION)]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, check=False, text=True)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr


def test_clients_may_pause_as_long_as_the_servers_allow() -> None:
    found = re.findall(r"^ +timeout (client|tunnel) (\d+)s$", CONFIGURATION.read_text(), re.MULTILINE)
    timeouts = {name: int(seconds) for name, seconds in found}
    assert timeouts["client"] == Settings().send_timeout_s
    assert timeouts["tunnel"] > Settings().send_timeout_s  # so that the server ends the session and logs why
