"""Opening and migrating the database, and the errors if that fails."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from streaming_server.errors import StorageFull, StorageUnavailable
from streaming_server.jobs import database
from streaming_server.jobs.database import Database, versions
from streaming_server.jobs.inspection import SPEECH
from streaming_server.jobs.store import JobStore, NewJob
from tests.support.postgres import PostgreSQL


def version_of(opened: Database) -> int:
    with opened.read() as connection:
        return int(connection.execute(sa.select(versions.c.version)).scalar_one())


def test_a_database_of_a_newer_program_is_refused(database_url: str) -> None:
    opened = Database(database_url)
    with opened.write() as connection:
        connection.execute(versions.update().values(version=99))
    opened.close()
    with pytest.raises(StorageUnavailable, match=r"^the database has version 99, this program knows \d+: take a newer"):
        Database(database_url)


def test_migrations_run_once_and_in_order(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Database(database_url)
    first = version_of(before)
    job = JobStore(before, max_pending=9, lease_s=9).submit([NewJob("a" * 32, SPEECH, "")])[0]
    before.close()
    steps = [
        ["ALTER TABLE jobs ADD COLUMN colour TEXT"],
        ["UPDATE jobs SET colour = 'red'", "UPDATE jobs SET result = colour"],
    ]
    monkeypatch.setattr(database, "_MIGRATIONS", [*database._MIGRATIONS, *steps])
    for _ in range(2):
        after = Database(database_url)
        assert version_of(after) == first + 2
        migrated = JobStore(after, max_pending=9, lease_s=9).get(job.id)
        assert migrated is not None
        assert (migrated.message, migrated.result) == ("accepted", "red")
        after.close()


def test_a_migration_that_fails_changes_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Database(database_url)
    first = version_of(before)
    before.close()
    steps = [["ALTER TABLE jobs ADD COLUMN colour TEXT"], ["UPDATE nothing SET colour = 'red'"]]
    with monkeypatch.context() as patch:
        patch.setattr(database, "_MIGRATIONS", [*database._MIGRATIONS, *steps])
        with pytest.raises(StorageUnavailable, match="cannot be used"):
            Database(database_url)
    after = Database(database_url)
    assert version_of(after) == first
    with after.read() as connection:
        assert "colour" not in {column["name"] for column in sa.inspect(connection).get_columns("jobs")}
    after.close()


def open_at(url: str, begin: str) -> int:
    while not Path(begin).exists():
        time.sleep(0.001)
    opened = Database(url)
    try:
        return version_of(opened)
    finally:
        opened.close()


def test_several_processes_may_open_a_new_database_at_once(database_url: str, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        waiting = pool.starmap_async(open_at, [(database_url, str(tmp_path / "begin"))] * 3)
        time.sleep(1.0)
        (tmp_path / "begin").touch()
        assert len(set(waiting.get(600))) == 1
        pool.close()
        pool.join()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense", "DATABASE_URL is not a database URL"),
        ("postgresql://user:secret@host:port/a", "DATABASE_URL is not a database URL"),
        ("mysql://a@b/c", "sqlite or postgresql is needed, not mysql"),
        (
            "postgresql://user:secret@127.0.0.1:1/none",
            r"postgresql\+psycopg://user:\*\*\*@127.0.0.1:1/none cannot be used",
        ),
        ("sqlite:////nonexistent/folder/a.db", "cannot be used: unable to open database file"),
    ],
)
def test_what_cannot_be_opened_is_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(StorageUnavailable, match=sentence) as refused:
        Database(url)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageUnavailable, match="file is not a database"):
        Database(f"sqlite:///{tmp_path / 'a.db'}")


def test_what_was_promised_is_safe_against_a_power_cut(database_url: str) -> None:
    """No test here cuts the power; the databases promise it for these settings."""
    opened = Database(database_url)
    setting = "PRAGMA synchronous" if opened.is_sqlite else "SHOW synchronous_commit"
    found = []
    for durable in (True, False, True):
        with opened.write(durable=durable) as connection:
            found.append(connection.exec_driver_sql(setting).scalar())
    assert found == ([2, 1, 2] if opened.is_sqlite else ["on", "off", "on"])
    opened.close()


def test_a_database_that_is_full(tmp_path: Path) -> None:
    opened = Database(f"sqlite:///{tmp_path / 'a.db'}")
    store = JobStore(opened, max_pending=9, lease_s=9)
    with opened.write() as connection:
        connection.exec_driver_sql("CREATE TABLE large (content BLOB)")
        connection.exec_driver_sql("PRAGMA max_page_count = 30")
    with pytest.raises(StorageFull), opened.write() as connection:
        connection.exec_driver_sql("INSERT INTO large VALUES (zeroblob(1000000))")
    assert store.page(1) == ([], 0)
    opened.close()


def test_a_lock_that_is_held_too_long_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_MS", 50)
    opened = Database(f"sqlite:///{tmp_path / 'a.db'}")
    holder = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable, match="try again later"), opened.write():
        pass
    holder.close()
    with opened.write():
        pass
    opened.close()


def test_a_postgresql_that_starts_anew_is_found_again(postgresql: PostgreSQL) -> None:
    opened = Database(postgresql.new_database())
    store = JobStore(opened, max_pending=9, lease_s=9)
    job = store.submit([NewJob("a" * 32, SPEECH, "")])[0]
    postgresql.stop()
    try:
        with pytest.raises(StorageUnavailable, match="try again later"):
            store.get(job.id)
    finally:
        postgresql.start()
    assert store.get(job.id) == job
    postgresql.stop()
    postgresql.start()
    assert store.get(job.id) == job, "no stale connection is used"
    opened.close()


def test_the_clock_is_the_databases(postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that share one do not share a clock."""
    opened = Database(postgresql.new_database())
    monkeypatch.setattr(time, "time", lambda: 0.0)
    job = JobStore(opened, max_pending=9, lease_s=9).submit([NewJob("a" * 32, SPEECH, "")])[0]
    assert job.created_s > 1.7e9
    opened.close()
