"""An agent check for HAProxy, which reports how many concurrent requests this server accepts.

That is what the slot accepts, one or up to ``MAX_CONCURRENT``, and one for each draining request: its synthesis has
ended, and a slow reader must not keep the next request from the free slot.
"""

from __future__ import annotations

import asyncio

from streaming_server.speech.service import SpeechService


async def start_agent(service: SpeechService, host: str, port: int) -> asyncio.Server:
    """Answer every connection with one line, ``maxconn:N``.

    Raises:
        OSError: the port is in use or not permitted.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"maxconn:{service.draining + service.slot.accepted}\n".encode())
        writer.close()

    return await asyncio.start_server(answer, host, port)
