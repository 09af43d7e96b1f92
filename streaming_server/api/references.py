"""Recordings that come with a request: base64, a data URL, or a URL of a host that the settings allow."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import anyio
from pydantic import Field

from streaming_server.domain import Voice
from streaming_server.errors import InvalidRequest, RecordingRefused
from streaming_server.jobs.file_store import storage_errors
from streaming_server.jobs.scratch import Scratch
from streaming_server.jobs.uploads import Uploads

MAX_REFERENCE_CHARACTERS = 4 * 1024 * 1024
"""Of a recording in base64: about 3 MiB of audio."""
_DATA_URL = re.compile(r"data:[\w./+-]*(?:;[\w.=+-]+)*;base64,", re.ASCII)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")

Reference = Annotated[str, Field(min_length=1, max_length=MAX_REFERENCE_CHARACTERS)]
"""A recording: base64, a `data:` URL, or an `http(s)` URL."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet."""
    return ipaddress.ip_address(address).is_global


class References:
    """Makes voices of such recordings."""

    def __init__(
        self,
        uploads: Uploads,
        scratch: Scratch,
        hosts: Collection[str],
        is_allowed: Callable[[str], bool] = is_public,
    ) -> None:
        """
        Args:
            uploads: examines them.
            scratch: holds them while they are in use.
            hosts: names of the hosts from which recordings may be fetched.
            is_allowed: whether an address of such a host may be connected to.
        """
        self._uploads = uploads
        self._scratch = scratch
        self._hosts = frozenset(host.lower() for host in hosts)
        self._is_allowed = is_allowed

    @asynccontextmanager
    async def voice(self, source: str, transcript: str = "", field: str = "ref_audio") -> AsyncIterator[Voice]:
        """The voice of a recording, whose file exists until the ``with`` ends.

        Args:
            source: as `Reference`.
            transcript: what the recording says, if that is known.
            field: names the source in errors.

        Raises:
            InvalidRequest: the source cannot be used, or is not a recording of an allowed kind.
            StorageFull, StorageUnavailable: the recording cannot be written.
        """
        content = await self._content(source.strip(), field)
        path = self._scratch.new()
        try:
            await anyio.to_thread.run_sync(_write, path, content)
            try:
                await self._uploads.examine(path)
            except RecordingRefused as error:
                raise InvalidRequest(f"{field}: {error}", field) from None
            yield Voice("ref_audio", path, transcript=transcript)
        finally:
            self._scratch.remove(path)

    async def _content(self, source: str, field: str) -> bytes:
        data_url = _DATA_URL.match(source)
        scheme = _SCHEME.match(source)
        if data_url is None and scheme is not None:
            if scheme[1].lower() not in {"http", "https"}:
                message = f"{field} must be base64, a data: URL with ;base64, or an http(s) URL, not {scheme[0][:20]}"
                raise InvalidRequest(message, field)
            # Few servers allow it, and httpx is slow to import.
            from streaming_server.api.fetching import fetch

            return await fetch(source, field, self._hosts, self._is_allowed)
        text = source[data_url.end() :] if data_url else source
        try:
            return await anyio.to_thread.run_sync(_decoded, text)
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"{field} is not valid base64", field) from None


def _decoded(text: str) -> bytes:
    return base64.b64decode("".join(text.split()), validate=True)


def _write(path: Path, content: bytes) -> None:
    with storage_errors():
        path.write_bytes(content)
