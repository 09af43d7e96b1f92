from __future__ import annotations

import pytest

from streaming_server.jobs import database


@pytest.fixture(autouse=True)
def patient_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections and locks may take long on a busy machine."""
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_MS", 120_000)
    monkeypatch.setattr(database, "_CONNECT_TIMEOUT_S", 60)
