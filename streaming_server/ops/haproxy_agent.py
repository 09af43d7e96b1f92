"""Tells a gateway how many requests it may have here at once, in the protocol of HAProxy's agent checks.

One may be spoken; those whose synthesis is over only drain into their readers. A gateway that counted those would keep
the next request from a free slot for as long as one reader is slow. Knows no gateway, and nothing of HTTP.
"""

from __future__ import annotations

import asyncio

from streaming_server.speech.service import SpeechService


async def start_agent(service: SpeechService, host: str, port: int) -> asyncio.Server:
    """Answer every connection with one line, ``maxconn:N``.

    Raises:
        OSError: the port cannot be had.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"maxconn:{service.draining + 1}\n".encode())
        writer.close()

    return await asyncio.start_server(answer, host, port)
