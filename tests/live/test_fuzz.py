"""Requests generated from `/openapi.json`: responses conform to it, and invalid requests are rejected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fakes import tone
from tests.support.server import running, speaking

SECONDS = int(os.environ.get("FUZZ_SECONDS", "10"))
"""For each of the two runs; `scripts/fuzz` sets more."""
CONFIG = Path(__file__).parents[1] / "data" / "schemathesis.toml"
ENDLESS = ("/opus_queue_status/events", "/test_stream")
JSON_LINES = ("/dev/captioned_speech", "/v1/text-to-speech/{voice_id}/stream/with-timestamps")
"""Their clients expect one object per line under ``application/json``, which schemathesis reads as one document."""

NEEDS_A_RECORDING = r"/generate-upload|/audio/voices|/audio/voice_consents"
"""No schema can say that the bytes of a file are a recording, so a request that fits the schema may be refused."""
RUNS = (
    ["--exclude-path-regex", NEEDS_A_RECORDING, "--max-time", str(SECONDS)],
    ["--include-path-regex", NEEDS_A_RECORDING, "--max-time", "3", "--exclude-checks", "positive_data_acceptance"],
)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 900)
@pytest.mark.parametrize("keys", [(), ("secret",)], ids=["open", "keys"])
def test_every_answer_is_as_described(tmp_path: Path, keys: tuple[str, ...]) -> None:
    engine = speaking(tone(0.05))
    engine.max_mel_tokens = None  # no schema knows the loaded model's own limit
    with running(engine, api_keys=keys, fleet=("http://127.0.0.1:9",)) as live:
        command: list[str | Path] = [Path(sys.executable).parent / "schemathesis", "--no-color"]
        command += ["--config-file", CONFIG, "run", f"http://127.0.0.1:{live.port}/openapi.json", "--checks", "all"]
        command += ["--warnings", "off", "--seed", os.environ.get("FUZZ_SEED", "1"), "--request-timeout", "180"]
        command += ["--wait-for-schema", "180"]
        command += [option for path in (*ENDLESS, *JSON_LINES) for option in ("--exclude-path", path)]
        command += [option for key in keys for option in ("--header", f"Authorization: Bearer {key}")]
        live.get("/openapi.json")  # made once; schemathesis waits ten seconds for it
        for options in RUNS:
            result = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, check=False, text=True)
            assert result.returncode == 0, result.stdout[-20_000:] + result.stderr
            assert live.get("/health").status_code == 200
    if "FUZZ_SECONDS" in os.environ:
        print(result.stdout)
