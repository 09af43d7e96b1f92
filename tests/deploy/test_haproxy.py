"""HAProxy accepts the configuration; its behaviour is tested in `tests.live.test_gateway`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"


@pytest.mark.parametrize("environment", [{}, {"SERVERS": "localhost:8000"}], ids=["listed", "by name"])
def test_the_configuration_is_valid_without_a_warning(environment: dict[str, str]) -> None:
    command = ["haproxy", "-c", "-f", str(CONFIGURATION)]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, check=False, text=True)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
