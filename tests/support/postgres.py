"""A real PostgreSQL for the tests, and stores with PostgreSQL and SQLite."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from streaming_server.jobs.database import Database
from streaming_server.jobs.storage import Storage, StorageOptions
from streaming_server.jobs.uploads import UploadLimits


class PostgreSQL:
    """Debian's PostgreSQL, for as long as the tests run; it listens on a socket in its folder alone."""

    def __init__(self, folder: Path) -> None:
        (self._bin, *_) = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        self._folder = folder
        self._numbers = count()
        # As root it refuses to run.
        self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if _is_root() else []
        if _is_root():
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
        self._run("initdb", "-D", f"{folder}/data", "-U", "postgres", "--auth=trust", "--no-sync")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync=off"
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-l", f"{self._folder}/log", "-o", options, "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-m", "immediate", "-w", "stop")

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(f"host={self._folder} user=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://postgres@/{name}?host={self._folder}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._bin / program), *arguments]
        log = self._folder / "log"
        done = subprocess.run(
            command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with TemporaryDirectory() as folder:
        server = PostgreSQL(Path(folder))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'server.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()


@contextmanager
def opened_storage(
    folder: Path,
    database_url: str,
    *,
    max_pending: int = 1000,
    lease_s: float = 6.0,
    keep_s: float = 3600.0,
    audio_keep_s: float = 3600.0,
    max_bytes: int = 2**20,
    max_s: float = 60.0,
    max_attempts: int = 5,
    storage_wait_s: float = 120.0,
    files_url: str = "",
) -> Iterator[Storage]:
    """One process's hold of what lies in a folder and a database."""
    limits = UploadLimits(max_bytes, max_s, keep_s)
    options = StorageOptions(
        folder,
        database_url,
        limits,
        audio_keep_s,
        max_pending,
        lease_s,
        max_attempts,
        storage_wait_s,
        files_url=files_url,
    )
    storage = Storage(options)
    try:
        yield storage
    finally:
        storage.close()


class Clock:
    """The databases' clock, which a test moves ahead; what it waits for does not depend on the machine's speed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now, self._ahead_s = Database.now, 0.0
        monkeypatch.setattr(Database, "now", lambda database: now(database) + self._ahead_s)

    def advance(self, seconds: float) -> None:
        self._ahead_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def files_below(folder: Path) -> list[str]:
    """All files, but for locks and SQLite's own."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith(".lock") and not name.startswith("server.db"))


def together(count: int, work: Callable[[int], object]) -> None:
    """So many threads that begin at once."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        barrier.wait()
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def has_mount() -> bool:
    return _is_root() and shutil.which("mount") is not None


def _is_root() -> bool:
    return os.geteuid() == 0
