"""Recordings that come with a request: base64, a data URL, or a URL of a host that the settings allow."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import anyio
import httpx
from pydantic import Field

from streaming_server.domain import Voice
from streaming_server.errors import InvalidRequest, RecordingRefused
from streaming_server.jobs.file_store import storage_errors
from streaming_server.jobs.scratch import Scratch
from streaming_server.jobs.uploads import Uploads

MAX_REFERENCE_CHARACTERS = 4 * 1024 * 1024
"""Of a recording in base64: about 3 MiB of audio."""
_MAX_FETCHED_BYTES = 10 * 1024 * 1024
_FETCH_TIMEOUT_S = 15.0
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
            return await self._fetch(source, field)
        text = source[data_url.end() :] if data_url else source
        try:
            return await anyio.to_thread.run_sync(_decoded, text)
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"{field} is not valid base64", field) from None

    async def _fetch(self, source: str, field: str) -> bytes:
        """
        Raises:
            InvalidRequest: the host is not allowed, has no public address, or does not deliver.
        """
        try:
            url = httpx.URL(source)
        except httpx.InvalidURL:
            raise InvalidRequest(f"{field} is not a valid URL", field) from None
        host = url.host.lower()
        if host not in self._hosts:
            message = f"{field}: URLs of the host {host[:80]!r} are not allowed; REF_AUDIO_HOSTS names those that are"
            raise InvalidRequest(message, field)
        try:
            async with asyncio.timeout(_FETCH_TIMEOUT_S):
                return await self._download(url, await self._address(url, field), field)
        except (TimeoutError, httpx.HTTPError, OSError) as error:
            reason = f"no answer within {_FETCH_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else str(error)
            raise InvalidRequest(f"{field} cannot be fetched from {host}: {reason}", field) from None

    async def _address(self, url: httpx.URL, field: str) -> str:
        """An address of the host, to which the connection is made, so that no second look-up gives another."""
        port = url.port or (443 if url.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        addresses = [str(address[4][0]).partition("%")[0] for address in found]
        if not addresses or not all(self._is_allowed(address) for address in addresses):
            raise InvalidRequest(f"{field}: the host {url.host} has an address that is not public", field)
        return addresses[0]

    async def _download(self, url: httpx.URL, address: str, field: str) -> bytes:
        target = url.copy_with(host=address, userinfo=b"")
        content = bytearray()
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False) as client,
            client.stream(
                "GET", target, headers={"Host": url.netloc.decode()}, extensions={"sni_hostname": url.host}
            ) as response,
        ):
            if response.status_code != 200:
                raise InvalidRequest(f"{field}: {url.host} answered with status {response.status_code}", field)
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > _MAX_FETCHED_BYTES:
                    limit = _MAX_FETCHED_BYTES // 2**20
                    raise InvalidRequest(f"{field}: the file at {url.host} is larger than {limit} MiB", field)
        return bytes(content)


def _decoded(text: str) -> bytes:
    return base64.b64decode("".join(text.split()), validate=True)


def _write(path: Path, content: bytes) -> None:
    with storage_errors():
        path.write_bytes(content)
