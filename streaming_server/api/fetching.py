"""Fetches recordings over HTTP from hosts that the settings allow."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection

import httpx

from streaming_server.errors import InvalidRequest

_MAX_BYTES = 10 * 1024 * 1024
_TIMEOUT_S = 15.0


async def fetch(source: str, field: str, hosts: Collection[str], is_allowed: Callable[[str], bool]) -> bytes:
    """Return the content of a recording.

    Args:
        source: an ``http(s)`` URL.
        field: names it in errors.
        hosts: lower-case names of the hosts that are allowed.
        is_allowed: whether an address of such a host may be connected to.

    Raises:
        InvalidRequest: the host is not allowed, has an address that is not, or does not deliver.
    """
    try:
        url = httpx.URL(source)
    except httpx.InvalidURL:
        raise InvalidRequest(f"{field} is not a valid URL", field) from None
    host = url.host.lower()
    if host not in hosts:
        message = f"{field}: URLs of the host {host[:80]!r} are not allowed; REF_AUDIO_HOSTS names those that are"
        raise InvalidRequest(message, field)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await _download(url, await _address(url, field, is_allowed), field)
    except (TimeoutError, httpx.HTTPError, OSError) as error:
        reason = f"no answer within {_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else str(error)
        raise InvalidRequest(f"{field} cannot be fetched from {host}: {reason}", field) from None


async def _address(url: httpx.URL, field: str, is_allowed: Callable[[str], bool]) -> str:
    """An address of the host, to which the connection is made, so that no second look-up gives another."""
    port = url.port or (443 if url.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    addresses = [str(address[4][0]).partition("%")[0] for address in found]
    if not addresses or not all(is_allowed(address) for address in addresses):
        raise InvalidRequest(f"{field}: the host {url.host} has an address that is not public", field)
    return addresses[0]


async def _download(url: httpx.URL, address: str, field: str) -> bytes:
    target = url.copy_with(host=address, userinfo=b"")
    headers = {"Host": url.netloc.decode(), "Accept-Encoding": "identity"}
    content = bytearray()
    async with (
        httpx.AsyncClient(trust_env=False, follow_redirects=False) as client,
        client.stream("GET", target, headers=headers, extensions={"sni_hostname": url.host}) as response,
    ):
        if response.status_code != 200:
            raise InvalidRequest(f"{field}: {url.host} answered with status {response.status_code}", field)
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > _MAX_BYTES:
                raise InvalidRequest(f"{field}: the file at {url.host} is larger than {_MAX_BYTES >> 20} MiB", field)
    return bytes(content)
