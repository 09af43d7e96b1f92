"""A TCP proxy that breaks connections where a test wants it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class CuttingProxy:
    """Passes on every byte; an answer to a request that begins with ``victim`` is cut after so many bytes."""

    target: int
    victim: bytes
    cuts: list[int]
    """Where to cut, one for each of the first such answers."""
    made: int = 0
    listener: socket.socket = field(default_factory=socket.socket)
    open: list[socket.socket] = field(default_factory=list)
    pumps: list[threading.Thread] = field(default_factory=list)

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            self.open += [client, server]
            budget: list[int] = []
            for pump in (self._ask, self._answer):
                self.pumps.append(threading.Thread(target=pump, args=(client, server, budget)))
                self.pumps[-1].start()

    def _ask(self, client: socket.socket, server: socket.socket, budget: list[int]) -> None:
        try:
            while data := client.recv(65536):
                budget.clear()
                if data.startswith(self.victim) and self.cuts:
                    budget.append(self.cuts.pop(0))
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            _end(server)

    def _answer(self, client: socket.socket, server: socket.socket, budget: list[int]) -> None:
        try:
            while data := server.recv(65536):
                if budget and len(data) >= budget[0]:
                    client.sendall(data[: budget[0]])
                    self.made += 1
                    _end(client)
                    _end(server)
                    return
                if budget:
                    budget[0] -= len(data)
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            _end(client)


def _end(connection: socket.socket) -> None:
    """End both directions, and leave the socket open for the thread that reads it.

    Otherwise that thread's next call could read another socket, which got the same file descriptor.
    """
    with suppress(OSError):  # the peer was faster
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting_proxy(target: int, victim: bytes, *cuts: int) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(target, victim, list(cuts))
    proxy.listener.bind(("127.0.0.1", 0))
    proxy.listener.listen()
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.listener.shutdown(socket.SHUT_RDWR)
        proxy.listener.close()
        thread.join()
        for connection in proxy.open:
            _end(connection)
        for pump in proxy.pumps:
            pump.join()
        for connection in proxy.open:
            connection.close()
