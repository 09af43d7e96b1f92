"""The tools over standard input and output, for a client on this machine that starts the server itself."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from pathlib import Path

from starlette.requests import Request

from streaming_server.api.requests import RequestBuilder
from streaming_server.jobs.storage import Storage
from streaming_server.mcp.tools import create_tools


async def run_stdio(requests: RequestBuilder, storage: Storage, folder: Path) -> None:
    """Serve until the input ends.

    Args:
        requests: its engine is warm.
        storage: as for `create_tools`.
        folder: where ``speak`` puts its files.
    """
    target_folder = await asyncio.to_thread(folder.resolve)

    async def deliver(path: Path, suffix: str, request: Request | None) -> str:
        target = target_folder / f"speech-{uuid.uuid4().hex[:12]}.{suffix}"
        await asyncio.to_thread(shutil.move, path, target)
        return str(target)

    await create_tools(requests, storage, deliver, reads_files=True).run_stdio_async()
