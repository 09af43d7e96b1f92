"""Formats log records as JSON or text, one record per line, for the console and a file."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal, TextIO

_FILE_BYTES = 64 * 1024 * 1024
"""Size at which the file is rotated to ``.1``."""
log = logging.getLogger(__name__)

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the current request."""


class JsonFormatter(logging.Formatter):
    """Writes ``time``, ``level``, ``logger``, ``message``, the record's ``fields`` and its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if (current := request_id.get()) is not None:
            entry["request_id"] = current
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """Writes ``time level logger: message key=value …`` and, on further lines, the traceback."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        fields = dict(getattr(record, "fields", {}))
        if (current := request_id.get()) is not None:
            fields["request_id"] = current
        given = (f"{name}={_one_line(str(value))}" for name, value in fields.items())
        return " ".join([super().formatMessage(record), *given])


def _one_line(value: str) -> str:
    """Quote a value with line breaks or control characters, which could imitate another record."""
    return value if value.isprintable() else json.dumps(value)


class LogFile(RotatingFileHandler):
    """A rotating log file, which several processes may share.

    Write errors, such as a full disk, are reported with one line.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8")
        self._is_failing = False
        self._has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        self._has_failed = False
        super().emit(record)
        self._is_failing = self._has_failed

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the name is logging's
        # Another process may have rotated the file. To rotate it again would delete the records of that process.
        if self.stream and not _is_at(self.stream, Path(self.baseFilename)):
            self.stream.close()
            self.stream = None  # opened by the next line, or with the next record if that fails
        return bool(super().shouldRollover(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._has_failed = True
        if not self._is_failing:
            self._is_failing = True  # before logging, which may fail as well
            log.error("log file not written: %s: %s", self.baseFilename, error.strerror)
            self._has_failed = True


def _is_at(stream: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_no_handshake(record: logging.LogRecord) -> bool:
    """Exclude uvicorn's records of WebSocket handshakes: they contain the query, and each is logged as a request."""
    return '"WebSocket %s"' not in str(record.msg)


def configure(
    stream: TextIO = sys.stderr,
    file: Path | None = None,
    *,
    form: Literal["json", "text"] = "json",
    level: Literal["debug", "info", "warning", "error"] = "info",
) -> None:
    """Write records of ``level`` and above to ``stream`` and, if given, to a file.

    Raises:
        OSError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(LogFile(file))
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=handlers, force=True)
    logging.getLogger("uvicorn.error").addFilter(_is_no_handshake)
    if level != "debug":
        logging.getLogger("httpx").setLevel(logging.WARNING)  # outgoing requests are not logged
