"""Multipart forms with one file, which goes to the disk as it comes and is gone with the request.

Knows multipart bodies (through python-multipart) and temporary files; not what the fields mean.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from streaming_server.api.http import MAX_BODY_BYTES, MalformedBody

if TYPE_CHECKING:  # python-multipart defines it for type checkers alone
    from python_multipart.multipart import MultipartCallbacks

_PREFIX = "upload-"
_FORGOTTEN_S = 86400
"""A file this old belongs to a server that was killed."""


@dataclass(slots=True)
class Form:
    """What a form said."""

    fields: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    """Where the file is for now; None where none came, or an empty one without a name."""


@asynccontextmanager
async def read_form(request: Request, file_field: str, folder: Path, limit_bytes: int) -> AsyncIterator[Form]:
    """Read a form; its file exists until the ``with`` ends.

    Args:
        request: its body has not been read.
        file_field: the part that is a file.
        folder: of temporary files; made where it is missing.
        limit_bytes: largest file.

    Raises:
        MalformedBody: no multipart body, or a broken one.
        HTTPException: 413 for a file above the limit, or for too much beside it.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise _malformed("Content-Type must be multipart/form-data with a boundary", "header", "content-type")
    _tidy(folder)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=_PREFIX) as sink:
        parts = _Parts(file_field, sink, limit_bytes)
        try:
            parser = MultipartParser(options[b"boundary"], parts.callbacks())
            async for piece in request.stream():
                parser.write(piece)
            parser.finalize()
            if not parts.ended:
                raise _malformed("the form ends in its middle")
            fields = {name: bytes(value).decode() for name, value in parts.fields.items()}
        except FormParserError:
            raise _malformed("the form cannot be read as multipart/form-data") from None
        except UnicodeDecodeError:
            raise _malformed("a field of the form is not UTF-8") from None
        sink.flush()
        yield Form(fields, Path(sink.name) if parts.file_came else None)


def _tidy(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # the end of another request
            if path.stat().st_mtime < time.time() - _FORGOTTEN_S:
                path.unlink()


class _Parts:
    """Takes what the parser finds."""

    def __init__(self, file_field: str, sink: tempfile._TemporaryFileWrapper[bytes], limit_bytes: int) -> None:
        self._file_field = file_field
        self._sink = sink
        self._limit_bytes = limit_bytes
        self._file_bytes = 0
        self._other_bytes = 0
        self._header = [bytearray(), bytearray()]
        self._name = ""
        self.fields: dict[str, bytearray] = {}
        self.file_came = False
        self.ended = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_header_begin": self._begin_header,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": self._take,
            "on_end": self._end,
        }

    def _begin_header(self) -> None:
        self._header = [bytearray(), bytearray()]

    def _end_header(self) -> None:
        if self._header[0].lower() != b"content-disposition":
            return
        _, options = parse_options_header(bytes(self._header[1]))
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name != self._file_field:
            self.fields[self._name] = bytearray()
        elif options.get(b"filename"):
            self.file_came = True

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._file_field:
            self.file_came = True
            self._file_bytes += end - start
            if self._file_bytes > self._limit_bytes:
                raise HTTPException(413, f"{self._file_field} is larger than {self._limit_bytes} bytes")
            self._sink.write(data[start:end])
            return
        self._other_bytes += end - start
        if self._other_bytes > MAX_BODY_BYTES:
            raise HTTPException(413, f"the form's fields are larger than {MAX_BODY_BYTES} bytes")
        self.fields.setdefault(self._name, bytearray()).extend(data[start:end])

    def _end(self) -> None:
        self.ended = True


def _malformed(message: str, place: str = "body", *path: str) -> MalformedBody:
    return MalformedBody([{"loc": [place, *path], "msg": message, "type": "form_invalid"}])
