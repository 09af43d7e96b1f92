"""Persistent storage: the database, files, jobs and uploads."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from streaming_server.errors import StorageFull, StorageUnavailable
from streaming_server.jobs.database import Database
from streaming_server.jobs.file_store import Files, FolderFiles, storage_errors
from streaming_server.jobs.paths import WORKFLOWS
from streaming_server.jobs.scratch import Scratch
from streaming_server.jobs.store import JobStore
from streaming_server.jobs.threads import StorageThreads
from streaming_server.jobs.uploads import PREFIX, UploadLimits, Uploads
from streaming_server.jobs.voice_store import VoiceStore
from streaming_server.jobs.worker_registry import WorkerRegistry

log = logging.getLogger(__name__)

AUDIO = "audio"
"""Prefix of the keys of finished audio."""


@dataclass(frozen=True, slots=True)
class StorageOptions:
    data_dir: Path
    database_url: str
    """Empty for SQLite in the data directory."""
    uploads: UploadLimits
    audio_keep_s: float
    """Retention of jobs and their audio."""
    max_pending: int
    lease_s: float
    max_attempts: int = 5
    """As for `JobStore`."""
    storage_wait_s: float = 120.0
    """As for `JobStore`."""
    workflow_root: str = ""
    """Empty for a folder in the data directory."""
    files_url: str = ""
    """Empty for folders, else ``s3://…``."""


_REQUEST_THREADS, _FILE_THREADS, _JOB_THREADS = 8, 8, 4
_START_TIMEOUT_S = 1.5
"""With the database's lock timeout below five seconds, the limit for answering a request."""
_FILE_START_TIMEOUT_S = 30.0
"""Maximum wait of a request for a thread in which a file is fetched or stored."""


class Storage:
    """Access of one process to the shared storage."""

    def __init__(self, options: StorageOptions) -> None:
        """
        Raises:
            StorageUnavailable: the folder or the database cannot be used.
        """
        folder = options.data_dir.resolve()
        try:
            self.scratch = Scratch(folder / "scratch")
        except OSError as error:
            raise StorageUnavailable(f"DATA_DIR={options.data_dir} cannot be written: {error.strerror}") from error
        root = Path(options.workflow_root or options.data_dir / WORKFLOWS).absolute()
        self.workflow_roots = (root.resolve(), root)
        """The folder of workflow files, without links and as configured, which may be or contain a link."""
        try:
            self.files = self._files(folder, options.files_url)
            self.database = Database(options.database_url or f"sqlite:///{folder / 'server.db'}")
        except StorageUnavailable:
            self.scratch.close()
            raise
        self.jobs = JobStore(
            self.database,
            max_pending=options.max_pending,
            lease_s=options.lease_s,
            max_attempts=options.max_attempts,
            storage_wait_s=options.storage_wait_s,
        )
        self.workers = WorkerRegistry(self.database, self.jobs)
        self.uploads = Uploads(self.database, self.files, self.scratch, options.uploads)
        self.voices = VoiceStore(self.database, self.files, self.uploads)
        self.audio_keep_s = options.audio_keep_s
        self.keep_s = min(options.audio_keep_s, options.uploads.keep_s)
        """The minimum retention time."""
        self.request_threads = StorageThreads(_REQUEST_THREADS, _START_TIMEOUT_S)
        self.file_threads = StorageThreads(_FILE_THREADS, _FILE_START_TIMEOUT_S, "file storage")
        """For transfers of files, so that slow ones do not keep requests from the database."""
        self.job_threads = StorageThreads(_JOB_THREADS)
        try:
            self.take_over()  # before this process works on a job that may have killed another one
        except (StorageFull, StorageUnavailable) as error:
            log.warning("takeover failed: %s", error)

    def _files(self, folder: Path, url: str) -> Files:
        if not url:
            return FolderFiles({PREFIX: folder / PREFIX, AUDIO: folder / AUDIO, WORKFLOWS: self.workflow_roots[0]})
        if not url.startswith("s3://"):
            raise StorageUnavailable(f"FILES_URL={url}: must be s3://bucket/prefix or empty")
        try:
            from streaming_server.jobs.s3_store import ObjectFiles
        except ModuleNotFoundError as error:
            raise StorageUnavailable(f"FILES_URL needs {error.name}: run scripts/install s3") from error
        return ObjectFiles(url, folder / "cache")

    def take_over(self) -> None:
        """Requeue the jobs of dead processes and remove their unfinished files.

        Raises:
            StorageFull, StorageUnavailable: the storage failed; call again later.
        """
        with storage_errors():
            for owner in self.scratch.dead():
                self.jobs.requeue_dead(owner)
                self.scratch.sweep(owner)

    def tidy(self) -> None:
        """Take over the jobs of dead processes and remove expired data.

        Raises:
            StorageFull, StorageUnavailable: the storage failed; call again later.
        """
        self.take_over()
        self.files.tidy()
        self.uploads.delete_expired()
        self._delete_ended(self.audio_keep_s)
        for key in self.files.older_than(AUDIO, self.audio_keep_s):
            # the audio of a job that was deleted just before its process died
            if self.jobs.get(Path(key).stem) is None:
                self.files.delete(key)

    def clear(self) -> int:
        """Delete all ended jobs and their audio, and return their number."""
        return self._delete_ended(0.0)

    def _delete_ended(self, age_s: float) -> int:
        ended = self.jobs.delete_ended(age_s)
        for job_id in ended:
            self.files.delete(audio_key(job_id))
        return len(ended)

    def close(self) -> None:
        self.voices.close()
        self.uploads.close()
        self.request_threads.close()
        self.file_threads.close()
        self.job_threads.close()
        self.scratch.close()
        self.database.close()


def audio_key(job_id: str) -> str:
    return f"{AUDIO}/{job_id}.wav"
