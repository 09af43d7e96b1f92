"""Uploaded recordings, stored once under the SHA-256 of their content until they expire."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from streaming_server.audio.probe import ALL_FORMATS, Recording
from streaming_server.domain import Voice
from streaming_server.errors import FileMissing, RecordingRefused, StorageUnavailable, UploadTooLarge
from streaming_server.jobs.database import Database, uploads
from streaming_server.jobs.examiner import Examiner
from streaming_server.jobs.file_store import Files, storage_errors
from streaming_server.jobs.scratch import Scratch
from streaming_server.jobs.store import is_kept
from streaming_server.jobs.threads import LookupThreads

PREFIX = "uploads"
"""Prefix of the keys of uploads."""
_ID = re.compile("[0-9a-f]{64}")
_BATCH_BYTES = 1024 * 1024
_EXAMINED_AT_ONCE = 2
"""Number of recordings that are decoded at once; a crafted file can take long."""
_MAX_REMOVED = 10_000
"""Batch size of a statement, because databases limit the number of values."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One row; times are UNIX seconds."""

    id: str
    """SHA-256 of the content, 64 hex digits."""
    filename: str
    """File name of the first client; never used in a path."""
    size: int
    """In bytes."""
    format: str
    sample_rate: int
    """In Hz."""
    duration_s: float
    created_s: float
    expires_s: float


@dataclass(frozen=True, slots=True)
class UploadLimits:
    max_bytes: int
    max_s: float
    keep_s: float
    """Retention after the last upload, unless a job uses it."""


class Uploads:
    """All uploads of one database and one file store."""

    def __init__(self, database: Database, files: Files, scratch: Scratch, limits: UploadLimits) -> None:
        self._database = database
        self._files = files
        self._scratch = scratch
        self._limits = limits
        self._examiner = Examiner()
        self._examining = ThreadPoolExecutor(_EXAMINED_AT_ONCE, "examine")
        self._lookups = LookupThreads(2)

    async def receive(
        self, filename: str, pieces: AsyncIterable[bytes], formats: Sequence[str] = ALL_FORMATS
    ) -> tuple[Upload, bool]:
        """Store a recording while it is received; returns its record, and whether the content was stored already.

        Args:
            filename: the client's name of the file.
            pieces: the content.
            formats: the formats that are allowed.

        Raises:
            RecordingRefused: it is not a recording in an allowed format.
            UploadTooLarge: it exceeds the limit.
            StorageFull, StorageUnavailable: it cannot be stored.
        """
        path = self._scratch.new()
        try:
            digest, size = await self._write(path, pieces)
            recording = await self.examine(path, formats)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._examining, self._keep, path, digest, size, filename, recording)
        finally:
            self._scratch.remove(path)

    async def examine(self, path: Path, formats: Sequence[str] = ALL_FORMATS) -> Recording:
        """Examine a recording of a client, before anything else decodes it.

        Raises:
            RecordingRefused: it is not a recording in an allowed format.
            StorageUnavailable: it cannot be examined.
        """
        return await asyncio.get_running_loop().run_in_executor(self._examining, self._examined, path, formats)

    def close(self) -> None:
        """Wait for the running calls and end their threads."""
        self._examining.shutdown()
        self._examiner.close()
        self._lookups.close()

    def get(self, upload_id: str) -> Upload | None:
        """Return the record of an upload that has not expired or that an unfinished job uses."""
        chosen = sa.and_(uploads.c.id == upload_id, is_kept(self._database.now()))
        with self._database.read() as connection:
            row = connection.execute(sa.select(uploads).where(chosen)).one_or_none()
        return _upload(row) if row else None

    def voice(self, upload_id: str) -> Voice | None:
        """Return an upload as a voice; None for an unknown or expired id.

        If the database is locked or unavailable, only the file is checked, so that live speech does not wait.
        """
        if not is_upload_id(upload_id):
            return None
        with suppress(StorageUnavailable):
            if self._lookups.run(self.get, upload_id) is None:
                return None
        try:
            return Voice(upload_id, self._files.local(upload_key(upload_id)))
        except FileMissing:
            return None

    def delete_expired(self) -> int:
        """Remove expired uploads that no unfinished job uses, and files without a record; returns their number."""
        useless = ~is_kept(self._database.now())
        with self._database.write() as connection:
            # The rows are locked and then checked again; a job that is submitted meanwhile waits for the end.
            found = sa.select(uploads.c.id).where(useless).limit(_MAX_REMOVED).with_for_update(skip_locked=True)
            held = list(connection.execute(found).scalars())
            chosen = sa.and_(uploads.c.id.in_(held), useless)
            removed = list(connection.execute(uploads.delete().where(chosen).returning(uploads.c.id)).scalars())
        # Each in a transaction of its own: object storage takes a request for each.
        return sum(self._delete_orphan(upload_id) for upload_id in removed) + self._delete_orphans()

    def _delete_orphans(self) -> int:
        """Remove files of processes that died before they wrote the record, or before they completed the file."""
        names = [key.removeprefix(f"{PREFIX}/") for key in self._files.older_than(PREFIX, self._limits.keep_s)]
        with self._database.read() as connection:
            recorded = set(connection.execute(sa.select(uploads.c.id)).scalars()) if names else set()
        incomplete = [name for name in names if not is_upload_id(name)]
        for name in incomplete:
            self._files.delete(upload_key(name))
        orphans = [name for name in names if is_upload_id(name) and name not in recorded]
        return len(incomplete) + sum(self._delete_orphan(upload_id) for upload_id in orphans)

    def _delete_orphan(self, upload_id: str) -> bool:
        # The inserted row is a lock: an upload of this content has finished, or waits for its removal.
        unknown = Recording("", 0, 0.0)
        with self._database.write() as connection:
            holding = self._database.insert_if_new(uploads, self._values(upload_id, 0, "", unknown))
            if not connection.execute(holding.returning(uploads.c.id)).scalar():
                return False
            self._files.delete(upload_key(upload_id))
            connection.execute(uploads.delete().where(uploads.c.id == upload_id))
        return True

    async def _write(self, path: Path, pieces: AsyncIterable[bytes]) -> tuple[str, int]:
        digest, size, batch = hashlib.sha256(), 0, bytearray()
        with storage_errors(), path.open("xb") as file:
            async for piece in pieces:
                size += len(piece)
                if size > self._limits.max_bytes:
                    raise UploadTooLarge(self._limits.max_bytes)
                digest.update(piece)
                batch += piece
                if len(batch) >= _BATCH_BYTES:
                    await asyncio.to_thread(file.write, bytes(batch))
                    batch.clear()
            if not size:
                raise RecordingRefused("the file is empty")
            await asyncio.to_thread(_write_and_sync, file, bytes(batch))
        return digest.hexdigest(), size

    def _examined(self, path: Path, formats: Sequence[str]) -> Recording:
        with storage_errors():
            return self._examiner.examine(path, self._limits.max_s, formats)

    def _keep(self, path: Path, upload_id: str, size: int, filename: str, recording: Recording) -> tuple[Upload, bool]:
        values = self._values(upload_id, size, filename, recording)
        with self._files.staged(upload_key(upload_id), path) as put, self._database.write() as connection:
            insert = self._database.insert_if_new(uploads, values).returning(uploads)
            again = uploads.update().where(uploads.c.id == upload_id).values(expires_s=values["expires_s"])
            row, is_duplicate = connection.execute(insert).one_or_none(), False
            while row is None:  # the old row may be removed between the two statements
                row, is_duplicate = connection.execute(again.returning(uploads)).one_or_none(), True
                if row is None:
                    row, is_duplicate = connection.execute(insert).one_or_none(), False
            # Inside the transaction: an expired upload of this content is removed before or after it.
            put()
        return _upload(row), is_duplicate

    def _values(self, upload_id: str, size: int, filename: str, recording: Recording) -> dict[str, Any]:
        now = self._database.now()
        return {
            "id": upload_id,
            "filename": filename,
            "size": size,
            "format": recording.format,
            "sample_rate": recording.rate_hz,
            "duration_s": recording.duration_s,
            "created_s": now,
            "expires_s": now + self._limits.keep_s,
        }


def upload_key(upload_id: str) -> str:
    """Return the key of an upload's file."""
    return f"{PREFIX}/{upload_id}"


def is_upload_id(text: str) -> bool:
    """Whether a string has the format of an upload's id."""
    return _ID.fullmatch(text) is not None


def _write_and_sync(file: BufferedWriter, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _upload(row: Any) -> Upload:
    return Upload(**row._mapping)
