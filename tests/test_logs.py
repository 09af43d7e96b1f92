from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from streaming_server import logs
from tests.support.fakes import tone
from tests.support.server import eventually, running, speaking


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back the root logger's own handlers."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    for handler in root.handlers:
        with suppress(OSError):  # of a full disk, which takes the rest no more than the beginning
            handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / "server.log"
    full.symlink_to("/dev/full")
    console = io.StringIO()
    logs.configure(console, full)
    for number in range(5):
        logging.getLogger("test").info("record %d", number)
    lines = [json.loads(line) for line in console.getvalue().splitlines()]
    messages = [line["message"] for line in lines if line["logger"] == "test"]
    assert messages == [f"record {number}" for number in range(5)]
    (failure,) = [line for line in lines if line["level"] == "error"]
    assert failure["message"] == f"log file not written: {full}: No space left on device"
    assert not any(capsys.readouterr())


def test_the_file_has_the_lines_of_the_console(tmp_path: Path) -> None:
    console = io.StringIO()
    logs.configure(console, tmp_path / "folder" / "server.log")
    logging.getLogger("test").warning("event: %s", "fact", extra={"fields": {"field": 1}})
    assert (tmp_path / "folder" / "server.log").read_text() == console.getvalue()
    assert json.loads(console.getvalue())["field"] == 1


def test_processes_that_share_the_file_lose_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FILE_BYTES", 300)
    one, other = (logs.LogFile(tmp_path / "server.log") for _ in range(2))
    written = []
    for number, (handler, length) in enumerate([(one, 100), (other, 100), (one, 150), (other, 120)]):
        written.append(f"{number}".ljust(length, "x"))
        handler.emit(logging.makeLogRecord({"msg": written[-1]}))
    for handler in (one, other):
        handler.close()
    kept = "".join((tmp_path / name).read_text() for name in ("server.log.1", "server.log"))
    assert kept.splitlines() == written


def test_a_rotated_file_that_cannot_be_opened_is_opened_later(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "server.log"
    logs.configure(io.StringIO(), path)
    path.unlink()
    path.parent.rmdir()
    logging.getLogger("test").info("lost")
    path.parent.mkdir()
    logging.getLogger("test").info("kept")
    assert json.loads(path.read_text())["message"] == "kept"


def test_a_value_cannot_imitate_another_record() -> None:
    console = io.StringIO()
    logs.configure(console, form="text")
    logging.getLogger("test").info(
        "request", extra={"fields": {"route": "/a\n2026 ERROR forged\x1b[2J", "voice": "声"}}
    )
    assert r'route="/a\n2026 ERROR forged\u001b[2J" voice=声' in console.getvalue()
    assert console.getvalue().count("\n") == 1


def test_text_has_the_fields_the_request_and_the_trace() -> None:
    console = io.StringIO()
    logs.configure(console, form="text", level="warning")
    token = logs.request_id.set("a1")
    logger = logging.getLogger("test")
    logger.info("not logged")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("request failed", extra={"fields": {"status": 500, "route": "/tts"}})
    logs.request_id.reset(token)
    first, *trace = console.getvalue().splitlines()
    assert first.endswith("ERROR   test: request failed status=500 route=/tts request_id=a1")
    assert trace[-1] == "ValueError: broken"


def test_the_query_of_a_session_is_not_logged() -> None:
    console = io.StringIO()
    logs.configure(console)
    with running(speaking(tone(0.1))) as live:
        for path in ("/v1/audio/speech/stream", "/none"):
            url = f"ws://127.0.0.1:{live.port}{path}?key=secret"
            with suppress(InvalidStatus), connect(url, open_timeout=120):  # a 404 for the second one
                pass
            eventually(lambda path=path: f'"route": "{path}"' in console.getvalue())  # type: ignore[misc]
    assert "secret" not in console.getvalue()
