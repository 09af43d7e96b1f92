"""Multipart forms with one file, which goes to the disk as it comes and is gone with the request.

Knows temporary files; not what the fields mean.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request

from streaming_server.api.http import MAX_BODY_BYTES
from streaming_server.api.multipart import PartHead, events
from streaming_server.errors import InvalidRequest, UploadTooLarge
from streaming_server.jobs.file_store import storage_errors


@dataclass(frozen=True, slots=True)
class Form:
    """What a form said."""

    fields: dict[str, str]
    file: Path | None
    """Where the file is for now; None where none came, or an empty one without a name."""


@asynccontextmanager
async def read_form(request: Request, file_field: str, path: Path, limit_bytes: int) -> AsyncIterator[Form]:
    """Read a form; its file exists until the ``with`` ends.

    Args:
        request: its body has not been read.
        file_field: the part that is a file.
        path: where to put it.
        limit_bytes: largest file.

    Raises:
        InvalidRequest: no multipart body, or a broken one.
        UploadTooLarge: a file above the limit.
        HTTPException: 413 for too much beside it.
    """
    values: dict[str, bytearray] = {}
    name, file_came, file_bytes, other_bytes = "", False, 0, 0
    with _removed(path):
        with storage_errors(), path.open("xb") as sink:
            async for event in events(request, limit_bytes + MAX_BODY_BYTES):
                if isinstance(event, PartHead):
                    name = event.field
                    values.setdefault(name, bytearray())
                    file_came = file_came or (name == file_field and bool(event.filename))
                elif name == file_field:
                    file_came = True
                    file_bytes += len(event)
                    if file_bytes > limit_bytes:
                        raise UploadTooLarge(limit_bytes)
                    sink.write(event)
                else:
                    other_bytes += len(event)
                    if other_bytes > MAX_BODY_BYTES:
                        raise HTTPException(413, f"the form's fields are larger than {MAX_BODY_BYTES} bytes")
                    values[name] += event
        values.pop(file_field, None)
        yield Form({name: _text(name, value) for name, value in values.items()}, path if file_came else None)


@contextmanager
def _removed(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _text(name: str, value: bytearray) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name[:80]} is not UTF-8", name) from None
