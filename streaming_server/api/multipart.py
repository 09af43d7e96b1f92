"""The file of a multipart body, as it comes in (RFC 7578). Keeps none of it, and knows nothing of what a file holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from streaming_server.errors import InvalidRequest, UploadTooLarge

_OVERHEAD_BYTES = 64 * 1024
"""What boundaries, headers and other fields may take beside the file."""


@dataclass(frozen=True, slots=True)
class PartHead:
    """A part begins."""

    field: str
    filename: str | None


async def file_part(request: Request, field: str, limit_bytes: int) -> tuple[str, AsyncIterator[bytes]]:
    """The first file in a field: what the client calls it, and its content, to be read at once.

    Raises:
        InvalidRequest: the body is not multipart, or has no such file. Reading raises it where the body ends too early.
        UploadTooLarge: the body is larger than the file may be.
    """
    parts = events(request, limit_bytes)
    async for event in parts:
        if isinstance(event, PartHead) and event.field == field and event.filename is not None:
            return event.filename, _content(parts)
    raise InvalidRequest(f"{field} is required: a part of the multipart body with a file name", field)


async def _content(parts: AsyncGenerator[PartHead | bytes, None]) -> AsyncIterator[bytes]:
    is_wanted = True
    async for event in parts:
        if isinstance(event, PartHead):
            is_wanted = False  # the rest is read all the same: only its end shows that the file was whole
        elif is_wanted:
            yield event


async def events(request: Request, limit_bytes: int) -> AsyncGenerator[PartHead | bytes, None]:
    """The parts of a multipart body as they come, each its head and then its content in pieces.

    Raises:
        InvalidRequest: the body is not multipart, cannot be read as such, or ends too early.
        UploadTooLarge: it is larger than that, not counting what frames the parts.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest("Content-Type must be multipart/form-data with a boundary", "content-type", "header")
    if int(request.headers.get("content-length", 0)) > limit_bytes + _OVERHEAD_BYTES:
        raise UploadTooLarge(limit_bytes)  # before a client that waits for `100 Continue` sends it
    found: list[PartHead | bytes] = []
    name, value, headers = bytearray(), bytearray(), dict[str, bytes]()
    is_complete = False

    def header_end() -> None:
        headers[name.decode("latin-1").lower()] = bytes(value)
        name.clear()
        value.clear()

    def headers_finished() -> None:
        _, parameters = parse_options_header(headers.get("content-disposition", b""))
        filename = parameters.get(b"filename")
        field = parameters.get(b"name", b"").decode("utf-8", "replace")
        found.append(PartHead(field, None if filename is None else filename.decode("utf-8", "replace")))
        headers.clear()

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
        raise InvalidRequest(f"the multipart body cannot be read: {error}", "body") from None
    if not is_complete:
        raise InvalidRequest("the multipart body ends before its last boundary", "body")
