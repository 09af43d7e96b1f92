"""Log records as one JSON object a line.

Knows records; not who writes them.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

_FILE_BYTES = 64 * 1024 * 1024
"""Then the file becomes ``.1``, in the place of an earlier one."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that is being served, in every task that serves it."""


class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``logger``, ``message``, whatever ``fields`` a record carries, and its trace."""

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


def configure(stream: TextIO = sys.stderr, file: Path | None = None) -> None:
    """Send every record from INFO on to ``stream``, and to a file that starts anew when it is full.

    Raises:
        OSError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(RotatingFileHandler(file, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # what other servers are asked is not this one's request
