from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from streaming_server.engines import registry
from streaming_server.environment import InvalidSetting
from streaming_server.settings import REMOVED, Settings, warn_of_removed

ROOT = Path(__file__).parent.parent


def test_what_is_not_set_has_its_default() -> None:
    assert Settings.from_env({}) == Settings()
    assert Settings.from_env({"PORT": "", "HOST": "  ", "API_KEYS": " "}) == Settings()
    assert (Settings().host, Settings().port, Settings().max_queue) == ("0.0.0.0", 8000, 32)


def test_every_setting_is_read_from_its_variable() -> None:
    settings = Settings.from_env(
        {
            "HOST": "::1",
            "PORT": "0",
            "REFERENCE_AUDIO_DIR": "/voices",
            "MAX_QUEUE": "0",
            "QUEUE_TIMEOUT_S": "1.5",
            "CORS_ORIGINS": "http://a.test, http://b.test",
        }
    )
    assert (settings.host, settings.port, settings.reference_audio_dir) == ("::1", 0, Path("/voices"))
    assert (settings.max_queue, settings.queue_timeout_s) == (0, 1.5)
    assert settings.cors_origins == ("http://a.test", "http://b.test")


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("PORT", "x", "a whole number from 0 to 65535"),
        ("PORT", "65536", "a whole number from 0 to 65535"),
        ("PORT", "80.5", "a whole number"),
        ("MAX_QUEUE", "-1", "a whole number of at least 0"),
        ("QUEUE_TIMEOUT_S", "nan", "a number of at least 0.001"),
        ("QUEUE_TIMEOUT_S", "inf", "a number of at least 0.001"),
        ("SEND_TIMEOUT_S", "0", "a number of at least 0.001"),
        ("MAX_PENDING_TASKS", "0", "a whole number of at least 1"),
        ("MAX_NEW_TOKENS", "5000", "a whole number from 1 to 4096"),
        ("AUDIO_KEEP_S", "1e12", "a number from 1 to 2e.11"),
        ("UPLOAD_KEEP_S", "1e12", "a number from 1 to 2e.11"),
        ("LIVE_FIRST", "maybe", "true or false"),
        ("API_KEYS", ",", "at least one value is needed"),
        ("REF_AUDIO_HOSTS", ", ,", "at least one value is needed"),
        ("OPENAI_DEFAULT_FORMAT", "midi", "one of mp3, opus, aac, flac, wav, pcm"),
    ],
)
def test_a_wrong_value_names_the_variable_and_the_range(name: str, value: str, needed: str) -> None:
    with pytest.raises(InvalidSetting, match=f"^{name}={value}: {needed}"):
        Settings.from_env({name: value})


def test_a_name_that_is_no_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_queu"):
        Settings(max_queu=1)  # type: ignore[call-arg]


def test_a_setting_that_no_longer_exists_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_removed({"UNSENT_STREAM_MB": "64", "LOG_FILE": " ", "PORT": "8000"})
    assert caplog.messages == ["setting ignored: UNSENT_STREAM_MB no longer exists: it is a quarter of UNSENT_TOTAL_MB"]
    assert not set(REMOVED) & {*Settings.variables(), *registry.variables()}


def test_the_settings_tables_are_up_to_date() -> None:
    script = [sys.executable, "scripts/settings_table.py", "--check"]
    assert subprocess.run(script, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode == 0
