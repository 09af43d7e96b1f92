"""Migration of databases of earlier versions."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from streaming_server.domain import SpeechRequest, Voice
from streaming_server.jobs.runner import SpeechJob
from streaming_server.jobs.storage import audio_key
from streaming_server.jobs.store import JobState
from tests.support.postgres import opened_storage

VERSION_1 = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
INSERT INTO schema_version VALUES (1);
CREATE TABLE jobs (
    number {number}, id VARCHAR(64) NOT NULL UNIQUE, state VARCHAR(16) NOT NULL, payload TEXT NOT NULL, result TEXT,
    message TEXT NOT NULL, progress FLOAT NOT NULL, attempts INTEGER NOT NULL, owner VARCHAR(128), lease_until_s FLOAT,
    created_s FLOAT NOT NULL, started_s FLOAT, ended_s FLOAT);
CREATE INDEX jobs_state ON jobs (state, number);
CREATE INDEX jobs_ended ON jobs (ended_s);
CREATE TABLE uploads (
    id VARCHAR(64) NOT NULL PRIMARY KEY, filename TEXT NOT NULL, size BIGINT NOT NULL, format VARCHAR(8) NOT NULL,
    sample_rate INTEGER NOT NULL, duration_s FLOAT NOT NULL, created_s FLOAT NOT NULL, expires_s FLOAT NOT NULL);
CREATE INDEX uploads_expires ON uploads (expires_s);
CREATE TABLE job_uploads (
    job {reference} NOT NULL REFERENCES jobs (number) ON DELETE CASCADE, upload VARCHAR(64) NOT NULL,
    PRIMARY KEY (job, upload));
CREATE INDEX job_uploads_upload ON job_uploads (upload);
INSERT INTO jobs (id, state, payload, result, message, progress, attempts, created_s, ended_s)
    VALUES ('done', 'completed', '{{}}', '{{"size": 5}}', 'completed', 1, 1, 9e9, 9e9)
"""
SUBMITTED = (
    "INSERT INTO jobs (id, state, payload, message, progress, attempts, created_s) "
    "VALUES ('waiting', 'pending', :payload, 'accepted', 0, 0, 1000.0)"
)


def test_what_version_1_accepted_is_done(database_url: str, tmp_path: Path) -> None:
    is_sqlite = database_url.startswith("sqlite")
    kinds = {
        "number": "INTEGER NOT NULL PRIMARY KEY" if is_sqlite else "BIGSERIAL PRIMARY KEY",
        "reference": "INTEGER" if is_sqlite else "BIGINT",
    }
    speech = SpeechJob(SpeechRequest("你好", Voice("voice_01", Path("voice_01.wav"), 0)), audio_key("waiting"))
    engine = sa.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        for statement in VERSION_1.format(**kinds).split(";\n"):
            connection.exec_driver_sql(statement)
        connection.execute(sa.text(SUBMITTED), {"payload": speech.to_json().replace(',"memo":null', "")})
    engine.dispose()

    with opened_storage(tmp_path, database_url) as storage:
        jobs, total = storage.jobs.page(10)
        assert ([job.id for job in jobs], total) == (["waiting", "done"], 2)
        assert storage.jobs.get("done").result == '{"size": 5}'  # type: ignore[union-attr]
        storage.workers.beat("w", None, {}, is_busy=False)
        assert storage.workers.take_unsent() == [("waiting", "indextts.generate_speech", None)]
        job = storage.jobs.claim("w")
        assert job is not None
        assert SpeechJob.from_json(job.payload) == speech
        storage.jobs.finish(job, "{}")
    with opened_storage(tmp_path, database_url) as storage:  # and a second time there is nothing left to bring up
        assert storage.jobs.get("waiting").state is JobState.COMPLETED  # type: ignore[union-attr]


def test_what_was_brought_up_is_what_is_made_anew(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    kinds = {"number": "INTEGER NOT NULL PRIMARY KEY", "reference": "INTEGER"}
    with engine.begin() as connection:
        for statement in VERSION_1.format(**kinds).split(";\n"):
            connection.exec_driver_sql(statement)
    engine.dispose()
    shapes = []
    for folder, name in ((old, "old.db"), (new, "new.db")):
        with opened_storage(folder, f"sqlite:///{tmp_path / name}"):
            pass
        engine = sa.create_engine(f"sqlite:///{tmp_path / name}")
        inspector = sa.inspect(engine)
        shapes.append(
            {
                table: (
                    sorted((column["name"], column["nullable"]) for column in inspector.get_columns(table)),
                    sorted(str(index["name"]) for index in inspector.get_indexes(table)),
                )
                for table in inspector.get_table_names()
            }
        )
        engine.dispose()
    assert shapes[0] == shapes[1]
