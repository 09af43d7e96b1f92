"""Creates the speech service, the storage and the worker from the settings, for the server, workers and commands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from streaming_server.engines.base import Batching, Engine
from streaming_server.engines.registry import create_engine
from streaming_server.jobs.storage import Storage, StorageOptions
from streaming_server.jobs.store import Job
from streaming_server.jobs.uploads import UploadLimits
from streaming_server.jobs.worker import Worker
from streaming_server.ops.gpu import gpus
from streaming_server.settings import Settings
from streaming_server.speech.buffers import ByteLimits
from streaming_server.speech.encoder_pool import EncoderPool
from streaming_server.speech.service import Resumption, SpeechService
from streaming_server.speech.slot import Slot
from streaming_server.speech.stream import SpeechStats
from streaming_server.speech.voices import VoiceLibrary

log = logging.getLogger(__name__)
_MIB = 1024 * 1024


def create_service(
    settings: Settings,
    engine: Engine | None = None,
    observe: Callable[[str, SpeechStats], None] = lambda *_: None,
) -> SpeechService:
    """Create the service with its engine, which is not warm yet; ``observe`` as for `SpeechService`.

    Raises:
        EngineUnavailable: the engine cannot start.
    """
    engine = engine or create_engine(settings.engine, settings.engine_options)
    capacity = min(settings.max_concurrent, engine.info.max_concurrency or settings.max_concurrent)
    if capacity < settings.max_concurrent:
        log.warning(
            "MAX_CONCURRENT=%d limited to %d by the %s engine", settings.max_concurrent, capacity, engine.info.name
        )
    if isinstance(engine, Batching):
        engine.reserve(capacity)
    return SpeechService(
        engine,
        Slot(
            settings.max_queue,
            settings.queue_timeout_s,
            live_first=settings.live_first,
            shows_text=settings.queue_preview,
            capacity=capacity,
            has_room=engine.has_room if isinstance(engine, Batching) else lambda _: True,
        ),
        EncoderPool(),
        ByteLimits.of(settings.unsent_total_mb * _MIB),
        Resumption(settings.resume_keep_s, settings.resume_grace_s),
        settings.max_text_characters,
        observe,
    )


def create_storage(settings: Settings) -> Storage:
    """Open the storage.

    Raises:
        StorageUnavailable: the storage cannot be used.
    """
    uploads = UploadLimits(settings.upload_max_mb * _MIB, settings.upload_max_s, settings.upload_keep_s)
    return Storage(
        StorageOptions(
            settings.data_dir,
            settings.database_url,
            uploads,
            settings.audio_keep_s,
            settings.max_pending_tasks,
            settings.task_lease_s,
            settings.max_task_attempts,
            settings.storage_wait_s,
            settings.workflow_root,
            settings.files_url,
        )
    )


def _devices() -> list[dict[str, Any]]:
    return [asdict(gpu) for gpu in gpus()]


def create_worker(
    settings: Settings,
    announce: Callable[[Job], None] | None = None,
    engine: Engine | None = None,
    observe: Callable[[str, SpeechStats], None] = lambda *_: None,
) -> Worker:
    """Create a worker; ``announce`` as for `JobRunner`, ``observe`` as for `SpeechService`.

    Raises:
        EngineUnavailable, StorageUnavailable: the engine cannot start, or the storage cannot be used.
    """
    service = create_service(settings, engine, observe)
    storage = create_storage(settings)
    info = service.engine.info
    voices = VoiceLibrary(
        settings.reference_audio_dir, storage.voices.find, storage.voices.named, info.presets, blends=info.blends
    )
    return Worker(service, storage, voices, _devices, announce)
