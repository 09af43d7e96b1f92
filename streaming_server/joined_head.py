"""The head of a response and the first part of its body in one write."""

from __future__ import annotations

import asyncio
from typing import Any


class JoinedHead:
    """A transport for one response, which holds its first write for the second one of the same step of the event loop.

    Every write wakes the client, which on a busy machine then runs before the server can write the audio.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._is_first = True
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._is_first:
            self._is_first, self._head = False, data
            asyncio.get_running_loop().call_soon(self._flush)
        else:
            head, self._head = self._head, b""
            self._transport.write(head + data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)
