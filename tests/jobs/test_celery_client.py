"""The messages that notify workers of jobs."""

from __future__ import annotations

import pytest

from streaming_server.errors import StorageUnavailable
from streaming_server.jobs.celery_client import Sender


@pytest.mark.parametrize("url", ["redsi://user:secret@host/0", "http://user:secret@host", "redis", "user:secret@host"])
def test_a_broker_that_cannot_work_is_refused(url: str) -> None:
    """Server and worker start with it; Celery itself finds out when it sends."""
    with pytest.raises(StorageUnavailable, match="CELERY_BROKER_URL is not a broker URL such as") as refused:
        Sender(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["redis://host/0", "rediss://:secret@host", "redis+socket:///file", "amqp://host", "amqps://host", "AMQP://host"],
)
def test_brokers_of_celery_are_accepted(url: str) -> None:
    assert Sender(url).celery.connection_for_write().transport_cls in {"redis", "rediss", "amqp", "amqps"}
