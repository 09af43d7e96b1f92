"""The application under uvicorn, on a real socket.

Knows connections and signals; not what is served.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from functools import partial
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import ChangeReload

from streaming_server import logs
from streaming_server.app import create_app
from streaming_server.settings import Settings


class SpeechProtocol(HttpToolsProtocol):
    """Tells a response what ASGI has no word for, by the request's state.

    ``transport``, to drop a reader that is too slow; ``ending``, an event that is set when the server shuts down, for
    responses that would go on for ever.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._ending = asyncio.Event()
        self.app_state = {**self.app_state, "transport": transport, "ending": self._ending}

    def shutdown(self) -> None:
        self._ending.set()
        super().shutdown()


def create_server(settings: Settings, **options: object) -> uvicorn.Server:
    """A server that is not running yet; ``options`` go to `create_app`.

    Raises:
        EngineUnavailable: the engine cannot start.
    """
    config = uvicorn.Config(
        create_app(settings, **options),  # type: ignore[arg-type]
        host=settings.host,
        port=settings.port,
        http=SpeechProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )
    return uvicorn.Server(config)


def serve(settings: Settings, *, reload: bool = False) -> None:
    """Run until a signal ends it; running streams get ``shutdown_timeout_s``.

    Args:
        settings: what is set.
        reload: begin again in a new process whenever a file of the package changes.
    """
    if not reload:
        _run(settings, None)
        return
    watched = [str(Path(__file__).parent)]
    config = uvicorn.Config(
        "", host=settings.host, port=settings.port, log_config=None, reload=True, reload_dirs=watched
    )
    ChangeReload(config, partial(_run, settings), [config.bind_socket()]).run()


def _run(settings: Settings, sockets: list[socket.socket] | None) -> None:
    # Set here, as a process that is begun again inherits neither.
    sys.setswitchinterval(0.0005)
    logs.configure(file=settings.log_path)
    server = create_server(settings)
    # A full collection stops all threads; without what lives as long as the process it takes 1 ms in place of 50.
    gc.collect()
    gc.freeze()
    server.run(sockets)
