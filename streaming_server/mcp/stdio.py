"""The tools over standard input and output, for a client on this machine that starts the server itself."""

from __future__ import annotations

import asyncio
import shutil
import signal
import uuid
from pathlib import Path

from starlette.requests import Request

from streaming_server.api.requests import RequestBuilder
from streaming_server.errors import StorageUnavailable
from streaming_server.jobs.storage import Storage
from streaming_server.mcp.tools import create_tools


async def run_stdio(requests: RequestBuilder, storage: Storage, folder: Path) -> int | None:
    """Serve until the input ends, or until SIGINT or SIGTERM.

    Args:
        requests: its engine is warm.
        storage: as for `create_tools`.
        folder: where ``speak`` puts its files.

    Returns:
        The number of the signal, if any. A thread then still waits for input, and only `os._exit` ends the process.
    """
    target_folder = await asyncio.to_thread(folder.resolve)

    async def deliver(path: Path, suffix: str, request: Request | None) -> str:
        target = target_folder / f"speech-{uuid.uuid4().hex[:12]}.{suffix}"
        try:
            await asyncio.to_thread(shutil.move, path, target)
        except OSError as error:
            reason = f"the audio file cannot be written: {error.strerror or error}"
            raise StorageUnavailable(f"--output {target_folder}: {reason}") from error
        return str(target)

    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.put_nowait, number)
    serving = asyncio.create_task(create_tools(requests, storage, deliver, reads_files=True).run_stdio_async())
    ending = asyncio.create_task(signals.get())
    await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
    if not ending.done():
        ending.cancel()
        await serving
        return None
    serving.cancel()
    return ending.result()
