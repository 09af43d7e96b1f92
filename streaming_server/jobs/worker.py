"""One process with an engine, as the others see it: it says that it lives, and clears up behind those that do not.

Knows the store and the slot; not where jobs come from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import anyio

from streaming_server.jobs.runner import JobRunner
from streaming_server.jobs.storage import Storage
from streaming_server.jobs.store import Job
from streaming_server.ops.gpu import gpus
from streaming_server.speech.service import SpeechService
from streaming_server.speech.voices import VoiceLibrary

log = logging.getLogger(__name__)

_TIDY_S = 60.0
"""At most so long after its time is over something is removed, or sooner where things are kept for less."""


class Worker:
    """An engine behind its slot, the storage, and the runner between them."""

    def __init__(
        self,
        service: SpeechService,
        storage: Storage,
        voices: VoiceLibrary,
        announce: Callable[[Job], None] | None = None,
    ) -> None:
        """``announce``: as for `JobRunner`; None where this process looks for its jobs itself."""
        self.id = storage.scratch.owner
        self.service = service
        self.storage = storage
        self.voices = voices
        self.runner = JobRunner(storage, service, voices, announce)

    async def live(self) -> None:
        """Until cancelled: tell the others of this worker."""
        workforce, slot = self.storage.workforce, self.service.slot
        try:
            while True:
                device = await asyncio.to_thread(_device)
                is_busy = slot.status().holder is not None
                try:
                    await asyncio.to_thread(workforce.beat, self.id, slot.last_entered_s, device, is_busy=is_busy)
                except Exception:
                    log.exception("no sign of life could be given")
                await asyncio.sleep(workforce.lease_s / 3)
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.to_thread(workforce.leave, self.id)

    async def tidy(self) -> None:
        """Until cancelled: take over from the dead, and remove what has expired."""
        while True:
            try:
                await asyncio.to_thread(self.storage.tidy)
            except Exception:
                log.exception("what has expired could not be removed")
            await asyncio.sleep(min(_TIDY_S, self.storage.keep_s))

    async def aclose(self) -> None:
        await self.service.aclose()
        self.storage.close()


def _device() -> dict[str, Any]:
    found = gpus()
    return asdict(found[0]) if found else {}
