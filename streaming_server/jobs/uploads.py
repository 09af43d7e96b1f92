"""Recordings that clients brought: stored once under the SHA-256 of their content, for a while.

Knows how they are received, described and removed; not how bytes come out of a request.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from streaming_server.audio.probe import Recording, probe
from streaming_server.domain import Voice
from streaming_server.errors import FileMissing, RecordingRefused, UploadTooLarge
from streaming_server.jobs.database import Database, uploads
from streaming_server.jobs.file_store import Files, full_disk
from streaming_server.jobs.scratch import Scratch
from streaming_server.jobs.store import is_kept

PREFIX = "uploads"
"""Of the files' keys."""
_ID = re.compile("[0-9a-f]{64}")
_BATCH_BYTES = 1024 * 1024
_MOST_REMOVED = 10_000
"""At once: databases take only so many values in one statement."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One row; times are UNIX seconds."""

    id: str
    """SHA-256 of the content, 64 hex digits."""
    filename: str
    """As the first who brought it called it. Never part of a path."""
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
    most_bytes: int
    longest_s: float
    keep_s: float
    """An upload is removed so long after it was last brought, unless a job needs it."""


class Uploads:
    """All uploads of one database and one store of files."""

    def __init__(self, database: Database, files: Files, scratch: Scratch, limits: UploadLimits) -> None:
        self._database = database
        self._files = files
        self._scratch = scratch
        self._limits = limits
        # One at a time, and not in the threads that everything else needs: a file may be made to take long.
        self._probing = ThreadPoolExecutor(1, "probe")

    async def receive(self, filename: str, pieces: AsyncIterable[bytes]) -> tuple[Upload, bool]:
        """Store a recording as it comes; the record, and whether there was one of that content already.

        Raises:
            RecordingRefused: it is no recording of an allowed kind.
            UploadTooLarge, StorageFull: as their names say.
        """
        path = self._scratch.new()
        try:
            digest, size = await self._write(path, pieces)
            loop = asyncio.get_running_loop()
            recording = await loop.run_in_executor(self._probing, probe, path, self._limits.longest_s)
            return await asyncio.to_thread(self._keep, path, digest, size, filename, recording)
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait for what is being looked at, and end."""
        self._probing.shutdown()

    def get(self, upload_id: str) -> Upload | None:
        """The record of an upload that is there: it has not expired, or an unfinished job needs it."""
        chosen = sa.and_(uploads.c.id == upload_id, is_kept(self._database.now()))
        with self._database.read() as connection:
            row = connection.execute(sa.select(uploads).where(chosen)).one_or_none()
        return _upload(row) if row else None

    def voice(self, upload_id: str) -> Voice | None:
        """An upload as a voice; None where there is none of that id."""
        if not is_upload_id(upload_id) or self.get(upload_id) is None:
            return None
        try:
            return Voice(upload_id, self._files.local(upload_key(upload_id)))
        except FileMissing:
            return None

    def delete_expired(self) -> int:
        """Remove uploads whose time is over and which no unfinished job needs, and files without a record; how many."""
        useless = ~is_kept(self._database.now())
        with self._database.write() as connection:
            # First the rows are held, then looked at again: a job that is submitted meanwhile waits for the end.
            found = sa.select(uploads.c.id).where(useless).limit(_MOST_REMOVED).with_for_update(skip_locked=True)
            held = list(connection.execute(found).scalars())
            chosen = sa.and_(uploads.c.id.in_(held), useless)
            removed = list(connection.execute(uploads.delete().where(chosen).returning(uploads.c.id)).scalars())
            for upload_id in removed:
                self._files.delete(upload_key(upload_id))
        return len(removed) + self._delete_orphans()

    def _delete_orphans(self) -> int:
        """What was moved to its place by a process that died before it could write the record."""
        keys = self._files.older_than(PREFIX, self._limits.keep_s)
        with self._database.read() as connection:
            recorded = set(connection.execute(sa.select(uploads.c.id)).scalars()) if keys else set()
        orphans = [upload_id for key in keys if (upload_id := key.removeprefix(f"{PREFIX}/")) not in recorded]
        return sum(self._delete_orphan(upload_id) for upload_id in orphans)

    def _delete_orphan(self, upload_id: str) -> bool:
        # Who holds the row's place is alone: one who brings that content just now is done, or waits for the end.
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
        with full_disk(), path.open("xb") as file:
            async for piece in pieces:
                size += len(piece)
                if size > self._limits.most_bytes:
                    raise UploadTooLarge(self._limits.most_bytes)
                digest.update(piece)
                batch += piece
                if len(batch) >= _BATCH_BYTES:
                    await asyncio.to_thread(file.write, bytes(batch))
                    batch.clear()
            if not size:
                raise RecordingRefused("the file is empty")
            await asyncio.to_thread(_write_and_sync, file, bytes(batch))
        return digest.hexdigest(), size

    def _keep(self, path: Path, upload_id: str, size: int, filename: str, recording: Recording) -> tuple[Upload, bool]:
        values = self._values(upload_id, size, filename, recording)
        with self._database.write() as connection:
            insert = self._database.insert_if_new(uploads, values).returning(uploads)
            again = uploads.update().where(uploads.c.id == upload_id).values(expires_s=values["expires_s"])
            row, is_duplicate = connection.execute(insert).one_or_none(), False
            while row is None:  # somebody may remove the old one between the two
                row, is_duplicate = connection.execute(again.returning(uploads)).one_or_none(), True
                if row is None:
                    row, is_duplicate = connection.execute(insert).one_or_none(), False
            # Inside the transaction: whoever removes an expired upload of this content is before all of it or after.
            self._files.put(upload_key(upload_id), path)
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
    """Where its content lies in the store of files."""
    return f"{PREFIX}/{upload_id}"


def is_upload_id(text: str) -> bool:
    """Whether a text has the form of an upload's id."""
    return _ID.fullmatch(text) is not None


def _write_and_sync(file: BufferedWriter, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _upload(row: Any) -> Upload:
    return Upload(**row._mapping)
