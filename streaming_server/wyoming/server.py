"""The server: accepts connections within limits, and optionally announces itself."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass

from streaming_server.api.requests import RequestBuilder
from streaming_server.errors import ShuttingDown
from streaming_server.ops.metrics import Metrics
from streaming_server.wyoming.connection import Connection
from streaming_server.wyoming.discovery import Discovery
from streaming_server.wyoming.events import MAX_LINE_BYTES

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WyomingOptions:
    host: str
    port: int
    max_connections: int
    max_connections_per_address: int
    is_announced: bool = False
    """Announce the server by zeroconf."""
    idle_s: float = 300.0
    """Timeout of a connection without events or audio."""
    send_timeout_s: float = 300.0
    """Timeout of a client that reads nothing."""


class WyomingServer:
    """Listens until closed."""

    def __init__(self, requests: RequestBuilder, metrics: Metrics, options: WyomingOptions) -> None:
        self._requests = requests
        self._metrics = metrics
        self._options = options
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._addresses = Counter[str]()
        self._server: asyncio.Server | None = None
        self._discovery: Discovery | None = None
        metrics.gauge("speech_wyoming_connections", "Open Wyoming connections", lambda: len(self._connections))

    async def start(self) -> None:
        """
        Raises:
            OSError: the port is in use or not permitted.
        """
        options = self._options
        self._server = await asyncio.start_server(self._accept, options.host, options.port, limit=MAX_LINE_BYTES)
        port = self._server.sockets[0].getsockname()[1]
        log.info("wyoming server listening: port %d", port)
        if options.is_announced:
            self._discovery = Discovery(options.host, port)
            await self._discovery.start()

    async def aclose(self) -> None:
        """Close all connections after sending the reason."""
        if self._discovery is not None:
            await self._discovery.aclose()
        if self._server is not None:
            self._server.close()
        tasks = list(self._connections.values())
        for connection in list(self._connections):
            connection.end(ShuttingDown())
        if tasks:
            await asyncio.wait(tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str((writer.get_extra_info("peername") or ("",))[0])
        options = self._options
        is_full = len(self._connections) >= options.max_connections
        if is_full or self._addresses[address] >= options.max_connections_per_address:
            log.info("connection refused: too many wyoming connections", extra={"fields": {"client": address}})
            writer.close()
            return
        connection = Connection(reader, writer, self._requests, self._metrics, options.idle_s, options.send_timeout_s)
        task = asyncio.current_task()
        assert task is not None
        self._connections[connection] = task
        self._addresses[address] += 1
        try:
            await connection.run()
        finally:
            del self._connections[connection]
            self._addresses -= Counter({address: 1})
