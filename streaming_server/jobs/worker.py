"""A process with an engine: its heartbeat, and the takeover from dead processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import anyio

from streaming_server.errors import StorageFull, StorageUnavailable
from streaming_server.jobs.inspection import Inspector, VoicePresets
from streaming_server.jobs.runner import JobRunner
from streaming_server.jobs.storage import Storage
from streaming_server.jobs.store import Job
from streaming_server.speech.service import SpeechService
from streaming_server.speech.voices import VoiceLibrary

log = logging.getLogger(__name__)

_TIDY_S = 60.0
"""Maximum interval of cleanups; shorter if the retention is shorter."""


class Worker:
    """An engine behind its slot, the storage, and the runner that connects them."""

    def __init__(
        self,
        service: SpeechService,
        storage: Storage,
        voices: VoiceLibrary,
        devices: Callable[[], Sequence[Mapping[str, Any]]],
        announce: Callable[[Job], None] | None = None,
    ) -> None:
        """``devices``: the GPUs of this machine. ``announce``: as for `JobRunner`; None where this process polls."""
        self.id = storage.scratch.owner
        self.service = service
        self.storage = storage
        self.voices = voices
        self.presets = VoicePresets(voices)
        self.runner = JobRunner(storage, service, voices, Inspector(service, self.presets, devices), announce)
        self._devices = devices

    async def live(self) -> None:
        """Send heartbeats until cancelled."""
        registry, slot, threads = self.storage.workers, self.service.slot, self.storage.job_threads
        try:
            while True:
                devices = await asyncio.to_thread(self._devices)
                is_busy = slot.status().holder is not None
                try:
                    beat = partial(registry.beat, is_busy=is_busy)
                    await threads.run(beat, self.id, slot.last_entered_s, devices[0] if devices else {})
                except (StorageFull, StorageUnavailable) as error:
                    log.warning("heartbeat failed: %s", error)
                except Exception:
                    log.exception("heartbeat failed")
                await asyncio.sleep(registry.lease_s / 3)
        finally:
            with anyio.CancelScope(shield=True), suppress(StorageFull, StorageUnavailable):
                await threads.run(registry.leave, self.id)

    async def tidy(self) -> None:
        """Take over the jobs of dead processes and remove expired data, until cancelled."""
        while True:
            try:
                await self.storage.job_threads.run(self.storage.tidy)
            except (StorageFull, StorageUnavailable) as error:
                log.warning("cleanup failed: %s", error)
            except Exception:
                log.exception("cleanup failed")
            await asyncio.sleep(min(_TIDY_S, self.storage.keep_s))

    async def aclose(self) -> None:
        await self.service.aclose()
        self.storage.close()
