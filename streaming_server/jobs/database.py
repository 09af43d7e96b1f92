"""Connections to one SQLite or PostgreSQL database, its schema, its migrations and its clock."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError, InternalError, OperationalError

from streaming_server.errors import StorageFull, StorageUnavailable

log = logging.getLogger(__name__)

_LOCK_TIMEOUT_MS = 3000
"""Lock timeout of a transaction, short enough to answer a request within five seconds."""
_CONNECT_TIMEOUT_S = 3
_MIGRATION_LOCK = 0x5350454543480001
"""Key of the advisory lock; an arbitrary number that is unlikely to collide."""
_MIGRATIONS: Sequence[Sequence[str]] = (
    (
        "ALTER TABLE jobs ADD COLUMN name VARCHAR(64) NOT NULL DEFAULT 'indextts.generate_speech'",
        "ALTER TABLE jobs ADD COLUMN workflow_id VARCHAR(64)",
        "ALTER TABLE jobs ADD COLUMN position INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN error_code VARCHAR(64)",
        "ALTER TABLE jobs ADD COLUMN sent_s FLOAT",
        "CREATE INDEX jobs_workflow ON jobs (workflow_id, number)",
        "CREATE TABLE workers (id VARCHAR(128) NOT NULL PRIMARY KEY, seen_s FLOAT NOT NULL, entered_s FLOAT, "
        "is_busy BOOLEAN NOT NULL, device TEXT NOT NULL)",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN preview TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE jobs ADD COLUMN failures INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN retry_at_s FLOAT",
        "ALTER TABLE jobs ADD COLUMN waiting_since_s FLOAT",
        "CREATE TABLE probes (upload VARCHAR(64) NOT NULL, owner VARCHAR(128) NOT NULL, is_dead BOOLEAN NOT NULL, "
        "started_s FLOAT NOT NULL, PRIMARY KEY (upload, owner))",
    ),
    (
        "CREATE TABLE voices (number {number}, id VARCHAR(64) NOT NULL UNIQUE, name VARCHAR(255) NOT NULL UNIQUE, "
        "upload VARCHAR(64) NOT NULL, consent TEXT NOT NULL, ref_text TEXT NOT NULL, description TEXT NOT NULL, "
        "created_s FLOAT NOT NULL)",
        "CREATE INDEX voices_upload ON voices (upload)",
        "CREATE TABLE consents (number {number}, id VARCHAR(64) NOT NULL UNIQUE, name VARCHAR(255) NOT NULL, "
        "language VARCHAR(64) NOT NULL, upload VARCHAR(64) NOT NULL, created_s FLOAT NOT NULL)",
        "CREATE INDEX consents_upload ON consents (upload)",
    ),
    ("DROP TABLE probes",),
)
"""Statements that migrate a database from version 1 to 2, from 2 to 3 and so on, valid in both databases;
``{number}`` stands for the type of a primary key that counts up."""
_NUMBERS = {"sqlite": "INTEGER NOT NULL PRIMARY KEY", "postgresql": "BIGSERIAL PRIMARY KEY"}

_metadata = sa.MetaData()
_Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite autoincrements INTEGER only

versions = sa.Table("schema_version", _metadata, sa.Column("version", sa.Integer, nullable=False))
jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column("number", _Number, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("workflow_id", sa.String(64)),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("preview", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("error_code", sa.String(64)),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("retry_at_s", sa.Float),
    sa.Column("waiting_since_s", sa.Float),
    sa.Column("owner", sa.String(128)),
    sa.Column("lease_until_s", sa.Float),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("sent_s", sa.Float),
    sa.Column("started_s", sa.Float),
    sa.Column("ended_s", sa.Float),
    sa.Index("jobs_state", "state", "number"),
    sa.Index("jobs_ended", "ended_s"),
    sa.Index("jobs_workflow", "workflow_id", "number"),
)
uploads = sa.Table(
    "uploads",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("format", sa.String(8), nullable=False),
    sa.Column("sample_rate", sa.Integer, nullable=False),
    sa.Column("duration_s", sa.Float, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("expires_s", sa.Float, nullable=False),
    sa.Index("uploads_expires", "expires_s"),
)
job_uploads = sa.Table(
    "job_uploads",
    _metadata,
    sa.Column("job", _Number, sa.ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    sa.Column("upload", sa.String(64), primary_key=True),
    sa.Index("job_uploads_upload", "upload"),
)
"""The uploads that a job uses."""
workers = sa.Table(
    "workers",
    _metadata,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("seen_s", sa.Float, nullable=False),
    sa.Column("entered_s", sa.Float),
    sa.Column("is_busy", sa.Boolean, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
)
"""Processes that run jobs, with the state of their slots at the last heartbeat."""
voices = sa.Table(
    "voices",
    _metadata,
    sa.Column("number", _Number, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("upload", sa.String(64), nullable=False),
    sa.Column("consent", sa.Text, nullable=False),
    sa.Column("ref_text", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Index("voices_upload", "upload"),
)
"""Voices that clients have added; each keeps its upload."""
consents = sa.Table(
    "consents",
    _metadata,
    sa.Column("number", _Number, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("language", sa.String(64), nullable=False),
    sa.Column("upload", sa.String(64), nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Index("consents_upload", "upload"),
)
"""Recordings in which people agree to the use of their voices; each keeps its upload."""


class Database:
    """Short transactions; safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        """Connect and migrate the schema.

        Args:
            url: an SQLAlchemy URL; ``sqlite:///file`` or ``postgresql://user@host/name``.

        Raises:
            StorageUnavailable: the database cannot be reached or used.
        """
        try:
            parsed = make_url(url)
            if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
                raise StorageUnavailable(f"DATABASE_URL: sqlite or postgresql is needed, not {parsed.drivername}")
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            # An idle connection breaks when the database restarts.
            timeout = {} if parsed.get_backend_name() == "sqlite" else {"connect_timeout": _CONNECT_TIMEOUT_S}
            self._engine = sa.create_engine(parsed, pool_pre_ping=True, connect_args=timeout)
            if self.is_sqlite:
                event.listen(self._engine, "connect", _prepare_sqlite)
                event.listen(self._engine, "begin", _begin_sqlite)
            try:
                with self._transaction(write=True) as connection:
                    self._migrate(connection)
            except BaseException:
                self.close()
                raise
        except (ArgumentError, ValueError):  # the latter for a port that is not a number
            raise StorageUnavailable("DATABASE_URL is not a database URL such as postgresql://user@host/name") from None
        except ModuleNotFoundError as error:
            raise StorageUnavailable(f"PostgreSQL needs {error.name}: run scripts/install postgresql") from error
        except DBAPIError as error:
            shown = parsed.render_as_string(hide_password=True)
            raise StorageUnavailable(f"the database {shown} cannot be used: {error.orig}") from error

    @property
    def is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    def now(self) -> sa.ColumnElement[float]:
        """Return UNIX seconds by the clock of the database."""
        if self.is_sqlite:  # a local file: all processes use this clock
            return sa.literal(time.time(), sa.Float)
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A read-only transaction with a consistent snapshot.

        Raises:
            StorageUnavailable: the database cannot be used, or stays locked.
        """
        with _translate_errors(), self._transaction(write=False) as connection:
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        """A read-write transaction; it holds SQLite's write lock from the beginning.

        Args:
            durable: survives a power failure. Otherwise it survives the process only and does not wait for the disk.

        Raises:
            StorageFull: there is no space left.
            StorageUnavailable: the database cannot be used, or stays locked.
        """
        with _translate_errors(), self._transaction(write=True, durable=durable) as connection:
            yield connection

    def insert_if_new(self, table: sa.Table, values: Mapping[str, Any]) -> postgresql.Insert | sqlite.Insert:
        """Insert a row unless its key exists; nothing is returned then."""
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        return insert(table).values(values).on_conflict_do_nothing()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, write: bool, durable: bool = True) -> Iterator[sa.Connection]:
        options: dict[str, Any] = {"write": write, "durable": durable}
        if not (write or self.is_sqlite):
            options["isolation_level"] = "REPEATABLE READ"
        with self._engine.connect().execution_options(**options) as connection, connection.begin():
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
                if not durable:
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
            yield connection

    def _migrate(self, connection: sa.Connection) -> None:
        if not self.is_sqlite:
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # a migration by another process may take longer
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        newest = len(_MIGRATIONS) + 1
        if not sa.inspect(connection).has_table(versions.name):
            _metadata.create_all(connection)
            connection.execute(versions.insert().values(version=newest))
            return
        version = connection.execute(sa.select(versions.c.version)).scalar_one()
        if version > newest:
            raise StorageUnavailable(
                f"the database has version {version}, this program knows {newest}: take a newer one"
            )
        for statements in _MIGRATIONS[version - 1 :]:
            for statement in statements:
                connection.execute(sa.text(statement.replace("{number}", _NUMBERS[self._engine.dialect.name])))
        connection.execute(versions.update().values(version=newest))


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver starts no transactions itself
    connection.execute(f"PRAGMA busy_timeout = {_LOCK_TIMEOUT_MS}")
    _use_wal(connection)
    connection.execute("PRAGMA foreign_keys = ON")


def _use_wal(connection: Any) -> None:
    until_s = time.monotonic() + _LOCK_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:  # changing the mode ignores the busy timeout
            if time.monotonic() > until_s:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later would fail instead of waiting if another one wrote in between.
    options = connection.get_execution_options()
    if options["write"]:
        connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if options['durable'] else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options["write"] else "BEGIN")


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if _is_full(error):
            raise StorageFull from error
        # SQLite raises `DatabaseError` itself for a damaged file; its other subclasses are programming errors.
        if isinstance(error, OperationalError | InterfaceError | InternalError) or type(error) is DatabaseError:
            log.warning("database unavailable: %s", error.orig)
            raise StorageUnavailable("the database cannot be used at the moment; try again later") from error
        raise


def _is_full(error: DBAPIError) -> bool:
    return (
        getattr(error.orig, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(error.orig, "sqlstate", "") == "53100"
    )
