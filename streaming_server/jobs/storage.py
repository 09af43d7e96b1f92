"""What outlives a process: the database, the files, the jobs and the uploads, opened together.

Knows where things lie; not what asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streaming_server.errors import StorageUnavailable
from streaming_server.jobs.database import Database
from streaming_server.jobs.file_store import Files, FolderFiles
from streaming_server.jobs.paths import WORKFLOWS
from streaming_server.jobs.scratch import Scratch
from streaming_server.jobs.store import JobStore
from streaming_server.jobs.uploads import PREFIX, UploadLimits, Uploads
from streaming_server.jobs.worker_registry import Workforce

AUDIO = "audio"
"""Prefix of the keys of finished audio."""


@dataclass(frozen=True, slots=True)
class StorageOptions:
    data_dir: Path
    database_url: str
    """Empty for SQLite in the data directory."""
    uploads: UploadLimits
    audio_keep_s: float
    """Jobs and their audio are removed so long after their end."""
    most_pending: int
    lease_s: float
    workflow_root: str = ""
    """Empty for a folder in the data directory."""
    files_url: str = ""
    """Empty for folders, else ``s3://…``."""


class Storage:
    """One process's hold of what several may share."""

    def __init__(self, options: StorageOptions) -> None:
        """
        Raises:
            StorageUnavailable: the folder or the database cannot be used; the sentence says why.
        """
        folder = options.data_dir.resolve()
        try:
            self.scratch = Scratch(folder / "scratch")
        except OSError as error:
            raise StorageUnavailable(f"DATA_DIR={options.data_dir} cannot be written: {error.strerror}") from error
        self.workflow_root = Path(options.workflow_root or folder / WORKFLOWS).resolve()
        try:
            self.files = self._files(folder, options.files_url)
            self.database = Database(options.database_url or f"sqlite:///{folder / 'server.db'}")
        except StorageUnavailable:
            self.scratch.close()
            raise
        self.jobs = JobStore(self.database, most_pending=options.most_pending, lease_s=options.lease_s)
        self.workforce = Workforce(self.database, options.lease_s)
        self.uploads = Uploads(self.database, self.files, self.scratch, options.uploads)
        self._audio_keep_s = options.audio_keep_s
        self.keep_s = min(options.audio_keep_s, options.uploads.keep_s)
        """What is kept for the shortest time is kept for this long."""

    def _files(self, folder: Path, url: str) -> Files:
        if not url:
            return FolderFiles({PREFIX: folder / PREFIX, AUDIO: folder / AUDIO, WORKFLOWS: self.workflow_root})
        if not url.startswith("s3://"):
            raise StorageUnavailable(f"FILES_URL={url}: s3://bucket/prefix is needed, or nothing")
        try:
            from streaming_server.jobs.s3_store import ObjectFiles
        except ModuleNotFoundError as error:
            raise StorageUnavailable(f"FILES_URL needs {error.name}: run scripts/install s3") from error
        return ObjectFiles(url, folder / "cache")

    def tidy(self) -> None:
        """Take over from the dead, and remove what has expired."""
        for owner in self.scratch.dead():
            self.jobs.release_all(owner)
            self.scratch.sweep(owner)
        self.files.tidy()
        self.uploads.delete_expired()
        self._forget_ended(self._audio_keep_s)
        for key in self.files.older_than(AUDIO, self._audio_keep_s):
            # The audio of a job that was deleted in the moment before the process died.
            if self.jobs.get(Path(key).stem) is None:
                self.files.delete(key)

    def clear(self) -> int:
        """Forget all jobs that have ended, and their audio; how many."""
        return self._forget_ended(0.0)

    def _forget_ended(self, age_s: float) -> int:
        ended = self.jobs.delete_ended(age_s)
        for job_id in ended:
            self.files.delete(audio_key(job_id))
        return len(ended)

    def close(self) -> None:
        self.uploads.close()
        self.scratch.close()
        self.database.close()


def audio_key(job_id: str) -> str:
    return f"{AUDIO}/{job_id}.wav"
