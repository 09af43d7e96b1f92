"""Forms (RFC 7578): a file as a stream, or all fields with the file in a temporary file."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import anyio
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from streaming_server.api.http import MAX_BODY_BYTES, read_body
from streaming_server.errors import InvalidRequest, UploadTooLarge
from streaming_server.jobs.file_store import storage_errors

_OVERHEAD_BYTES = 64 * 1024
"""Maximum size of boundaries, headers and other fields in addition to the file."""
_MAX_PARTS = 64
_URL_ENCODED = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class PartHead:
    """The headers of a part; its content follows."""

    field: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of a form."""

    fields: dict[str, str]
    file: Path | None
    """Path of the file while the form is open; None if there is none, or an empty one without a name."""


async def file_part(request: Request, field: str, limit_bytes: int) -> tuple[str, AsyncIterator[bytes]]:
    """Return the first file of a field: its file name, and its content as a stream.

    Raises:
        InvalidRequest: the body is not multipart, or has no such file; raised while reading if the body is truncated.
        UploadTooLarge: the body exceeds the limit.
    """
    parts = _events(request, limit_bytes)
    async for event in parts:
        if isinstance(event, PartHead) and event.field == field and event.filename is not None:
            return event.filename, _content(parts)
    raise InvalidRequest(f"{field} is required: a part of the multipart body with a file name", field)


@asynccontextmanager
async def read_form(request: Request, file_field: str, path: Path, limit_bytes: int) -> AsyncIterator[Form]:
    """Read a form; its file is deleted at the end of the ``with``.

    Args:
        request: the request, with an unread body.
        file_field: the part that is a file.
        path: the path for the file.
        limit_bytes: maximum size of the file.

    Of several parts with one name the last one counts. A form without a file may also be URL-encoded.

    Raises:
        InvalidRequest: the body is not a form, or malformed.
        UploadTooLarge: the file exceeds the limit.
        HTTPException: 413 if the other fields exceed their limit.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == _URL_ENCODED:
        content = await read_body(request, MAX_BODY_BYTES)
        yield Form(await anyio.to_thread.run_sync(_url_encoded, content, limiter=request.app.state.parsing), None)
        return
    values: dict[str, bytearray] = {}
    name, file_came, file_bytes, other_bytes = "", False, 0, 0
    with _removed(path):
        with storage_errors(), path.open("xb") as sink:
            async for event in _events(request, limit_bytes + MAX_BODY_BYTES):
                if isinstance(event, PartHead):
                    name = event.field
                    values[name] = bytearray()
                    if name == file_field:
                        sink.seek(0)
                        sink.truncate()
                        file_came, file_bytes = bool(event.filename), 0
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


async def _content(parts: AsyncGenerator[PartHead | bytes, None]) -> AsyncIterator[bytes]:
    is_wanted = True
    async for event in parts:
        if isinstance(event, PartHead):
            is_wanted = False  # read to the end, which shows whether the body is complete
        elif is_wanted:
            yield event


async def _events(request: Request, limit_bytes: int) -> AsyncGenerator[PartHead | bytes, None]:
    """Iterate over the parts of a multipart body: for each its `PartHead`, then its content in pieces.

    Raises:
        InvalidRequest: the body is not multipart, malformed or truncated.
        UploadTooLarge: the content of the parts exceeds the limit.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest("Content-Type must be multipart/form-data with a boundary", "content-type", "header")
    if int(request.headers.get("content-length", 0)) > limit_bytes + _OVERHEAD_BYTES:
        raise UploadTooLarge(limit_bytes)  # before a client that waits for `100 Continue` sends it
    found: list[PartHead | bytes] = []
    name, value, headers = bytearray(), bytearray(), dict[str, bytes]()
    is_complete, parts = False, 0

    def header_end() -> None:
        headers[name.decode("latin-1").lower()] = bytes(value)
        name.clear()
        value.clear()

    def headers_finished() -> None:
        nonlocal parts
        _, parameters = parse_options_header(headers.get("content-disposition", b""))
        filename = parameters.get(b"filename")
        field = parameters.get(b"name", b"").decode("utf-8", "replace")
        found.append(PartHead(field, None if filename is None else filename.decode("utf-8", "replace")))
        headers.clear()
        if (parts := parts + 1) > _MAX_PARTS:
            raise InvalidRequest(f"the multipart body has more than {_MAX_PARTS} parts", "body")

    def end() -> None:
        nonlocal is_complete
        is_complete = True

    size = 0
    try:
        parser = MultipartParser(
            options[b"boundary"],
            {
                "on_header_field": lambda data, start, stop: name.extend(data[start:stop]),
                "on_header_value": lambda data, start, stop: value.extend(data[start:stop]),
                "on_header_end": header_end,
                "on_headers_finished": headers_finished,
                "on_part_data": lambda data, start, stop: found.append(data[start:stop]),
                "on_end": end,
            },
        )
        async for piece in request.stream():
            size += len(piece)
            if size > limit_bytes + _OVERHEAD_BYTES:
                raise UploadTooLarge(limit_bytes)
            parser.write(piece)
            for event in found:
                yield event
            found.clear()
    except FormParserError as error:
        raise InvalidRequest(f"invalid multipart body: {error}", "body") from None
    if not is_complete:
        raise InvalidRequest("the multipart body ends before its last boundary", "body")


@contextmanager
def _removed(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _url_encoded(content: bytes) -> dict[str, str]:
    """
    Raises:
        InvalidRequest: the form has too many fields, or is not UTF-8.
    """
    try:
        return dict(parse_qsl(content.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARTS))
    except ValueError as error:
        raise InvalidRequest(f"invalid URL-encoded form: {error}", "body") from None


def _text(name: str, value: bytearray) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name[:80]} is not UTF-8", name) from None
