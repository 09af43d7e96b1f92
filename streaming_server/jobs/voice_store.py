"""Voices that clients have added, and recordings of consent: rows that name uploads and keep them until deleted."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from streaming_server.domain import Voice
from streaming_server.errors import (
    ConsentNotFound,
    FileMissing,
    InvalidRequest,
    StorageUnavailable,
    UploadNotFound,
    VoiceNotFound,
)
from streaming_server.jobs.database import Database, consents, uploads, voices
from streaming_server.jobs.file_store import Files
from streaming_server.jobs.store import is_kept
from streaming_server.jobs.threads import LookupThreads
from streaming_server.jobs.uploads import Upload, Uploads, is_upload_id, upload_key

MAX_VOICES = 1000
"""Voices, and also consents, that are stored at most."""
_VOICE_ID = re.compile("voice_[0-9a-f]{24}")
_CONSENT_ID = re.compile("cons_[0-9a-f]{24}")
_NOT_IN_A_PATH = re.compile(r"[/\\?#%\s]|^\.\.?$")
"""Clients put the id of a voice into the path of a URL as it is."""


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """One voice; times are UNIX seconds."""

    id: str
    name: str
    upload: str
    """The SHA-256 of its recording."""
    consent: str
    """The id of a `VoiceConsent`, or what the client stated."""
    ref_text: str
    """What the recording says; empty where it was not given."""
    description: str
    created_s: float
    format: str
    """Of the recording, as in `Upload`."""
    size: int
    """Of the recording, in bytes."""


@dataclass(frozen=True, slots=True)
class VoiceConsent:
    """A recording in which a person agrees to the use of their voice."""

    id: str
    name: str
    language: str
    created_s: float


class VoiceStore:
    """The voices and consents of one database."""

    def __init__(self, database: Database, files: Files, kept: Uploads) -> None:
        """``kept``: the uploads that voices refer to."""
        self._database = database
        self._files = files
        self._uploads = kept
        self._lookups = LookupThreads(1)
        self._known: Sequence[StoredVoice] = ()
        """As last read, for the time in which the database is locked or away."""

    def close(self) -> None:
        """End the thread."""
        self._lookups.close()

    def find(self, name: str) -> Voice | None:
        """The voice of a stored voice's id or name, or of an upload's id; None if there is none.

        Its name is the upload's id, by which jobs keep the recording.
        """
        if is_upload_id(name):
            return self._uploads.voice(name)
        stored = next((voice for voice in self.current() if name in {voice.id, voice.name}), None)
        if stored is None:
            return None
        try:
            path = self._files.local(upload_key(stored.upload))
            return Voice(stored.upload, path, title=stored.name, transcript=stored.ref_text)
        except FileMissing:
            return None

    def named(self) -> Sequence[Voice]:
        """The stored voices, to be listed: `find` returns one with its recording.

        Each is under its name, or under its id where the path of a URL cannot have the name.
        """
        return [
            Voice(voice.id if _NOT_IN_A_PATH.search(voice.name) else voice.name, title=voice.name)
            for voice in self.current()
        ]

    def current(self) -> Sequence[StoredVoice]:
        """As `voices`; while the database is locked or away, as last read, so that live speech does not wait for it."""
        try:
            return self._lookups.run(self.voices)
        except StorageUnavailable:
            return self._known

    def voices(self) -> Sequence[StoredVoice]:
        """All stored voices, the oldest first."""
        columns = (*(column for column in voices.c if column is not voices.c.number), uploads.c.format, uploads.c.size)
        chosen = sa.select(*columns).join(uploads, uploads.c.id == voices.c.upload).order_by(voices.c.number)
        with self._database.read() as connection:
            self._known = [StoredVoice(**row._mapping) for row in connection.execute(chosen)]
        return self._known

    def add(self, name: str, upload: Upload, consent: str, ref_text: str, description: str) -> StoredVoice:
        """Store a voice.

        Raises:
            InvalidRequest: the name is taken, the consent is the id of none, or there are `MAX_VOICES` already.
            UploadNotFound: the upload has expired.
            StorageFull, StorageUnavailable: it cannot be stored.
        """
        values = {
            "id": f"voice_{secrets.token_hex(12)}",
            "name": name,
            "upload": upload.id,
            "consent": consent,
            "ref_text": ref_text,
            "description": description,
        }
        with self._database.write() as connection:
            if consent.startswith("cons_") and not _exists(connection, consents.c.id == consent):
                raise InvalidRequest(f"consent {consent[:64]!r} does not exist; create it first", "consent")
            row = self._insert(connection, voices, upload, values)
            if row is None:
                raise NameTaken(name)
        stored = _stored(row, upload)
        self._known = [*self._known, stored]
        return stored

    def delete(self, voice: str) -> StoredVoice:
        """Delete a voice by its id or name.

        Raises:
            VoiceNotFound: there is none.
        """
        found = next((known for known in self.voices() if voice in {known.id, known.name}), None)
        with self._database.write() as connection:
            gone = voices.delete().where(voices.c.id == (found.id if found else ""))
            if found is None or not connection.execute(gone).rowcount:
                raise VoiceNotFound(voice)
        self._known = [known for known in self._known if known.id != found.id]
        return found

    def add_consent(self, name: str, language: str, upload: Upload) -> VoiceConsent:
        """Store a consent.

        Raises:
            InvalidRequest, UploadNotFound, StorageFull, StorageUnavailable: as `add`.
        """
        values = {"id": f"cons_{secrets.token_hex(12)}", "name": name, "language": language, "upload": upload.id}
        with self._database.write() as connection:
            return _consent(self._insert(connection, consents, upload, values))

    def consent(self, consent_id: str) -> VoiceConsent:
        """
        Raises:
            ConsentNotFound: there is none of this id.
        """
        _check_consent_id(consent_id)
        with self._database.read() as connection:
            row = connection.execute(sa.select(consents).where(consents.c.id == consent_id)).one_or_none()
        if row is None:
            raise ConsentNotFound(consent_id)
        return _consent(row)

    def consents(self, limit: int, after: str | None) -> tuple[list[VoiceConsent], bool]:
        """The consents, newest first, from the one after ``after``; and whether there are more.

        Raises:
            ConsentNotFound: there is none of the id ``after``.
        """
        if after is not None:
            _check_consent_id(after)
        chosen = sa.select(consents).order_by(consents.c.number.desc()).limit(limit + 1)
        with self._database.read() as connection:
            if after is not None:
                at = connection.execute(sa.select(consents.c.number).where(consents.c.id == after)).scalar()
                if at is None:
                    raise ConsentNotFound(after)
                chosen = chosen.where(consents.c.number < at)
            found = [_consent(row) for row in connection.execute(chosen)]
        return found[:limit], len(found) > limit

    def rename_consent(self, consent_id: str, name: str) -> VoiceConsent:
        """
        Raises:
            ConsentNotFound: there is none of this id.
        """
        _check_consent_id(consent_id)
        changed = consents.update().where(consents.c.id == consent_id).values(name=name).returning(consents)
        with self._database.write() as connection:
            row = connection.execute(changed).one_or_none()
        if row is None:
            raise ConsentNotFound(consent_id)
        return _consent(row)

    def delete_consent(self, consent_id: str) -> None:
        """Delete a consent; voices that name it stay.

        Raises:
            ConsentNotFound: there is none of this id.
        """
        _check_consent_id(consent_id)
        with self._database.write() as connection:
            if not connection.execute(consents.delete().where(consents.c.id == consent_id)).rowcount:
                raise ConsentNotFound(consent_id)

    def _insert(self, connection: sa.Connection, table: sa.Table, upload: Upload, values: dict[str, Any]) -> Any:
        """Insert a row that refers to an upload; None where its name is taken.

        Raises:
            InvalidRequest, UploadNotFound: as `add`.
        """
        # The update locks the upload's row: a removal of expired uploads comes before or sees the new reference.
        there = sa.and_(uploads.c.id == upload.id, is_kept(self._database.now()))
        if not connection.execute(uploads.update().where(there).values(id=upload.id)).rowcount:
            raise UploadNotFound(upload.id)
        if connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() >= MAX_VOICES:
            raise InvalidRequest(f"{MAX_VOICES} {table.name} are stored already; delete one first", "name")
        row = {**values, "created_s": self._database.now()}
        return connection.execute(self._database.insert_if_new(table, row).returning(table)).one_or_none()


class NameTaken(InvalidRequest):
    """Another voice has the name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"name {name[:80]!r} is taken by another voice", "name")


def is_reserved(name: str) -> bool:
    """Whether a name has the form of an id."""
    return is_upload_id(name) or _VOICE_ID.fullmatch(name) is not None


def _check_consent_id(text: str) -> None:
    """PostgreSQL accepts no NUL characters, which a client's text may contain.

    Raises:
        ConsentNotFound: it is not the id of a consent.
    """
    if not _CONSENT_ID.fullmatch(text):
        raise ConsentNotFound(text)


def _exists(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> bool:
    return connection.execute(sa.select(sa.literal(1)).where(condition)).scalar() is not None


def _stored(row: Any, upload: Upload) -> StoredVoice:
    values = {name: value for name, value in row._mapping.items() if name != "number"}
    return StoredVoice(**values, format=upload.format, size=upload.size)


def _consent(row: Any) -> VoiceConsent:
    return VoiceConsent(row.id, row.name, row.language, row.created_s)
