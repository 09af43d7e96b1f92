"""What the tests of many machines need: a real Redis, a real RabbitMQ, and a server that speaks like S3.

Each listens on a free port of the loopback, writes below a folder of its own, and ends with the tests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import amqp
import boto3
import pytest

from tests.support.children import end, free_port, spawn
from tests.support.server import eventually


class Broker(Protocol):
    """What carries messages."""

    url: str

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def clear(self) -> None:
        """Forget what was left there for others."""


class Service:
    """A process with a log file."""

    def __init__(self, folder: Path, *command: str, **environment: str) -> None:
        self._log = (folder / f"{Path(command[0]).name}.log").open("ab")
        self.process = spawn(
            command, cwd=folder, env=os.environ | environment, stdout=self._log, stderr=subprocess.STDOUT
        )

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def wait_for(self, port: int) -> None:
        def accepts() -> bool:
            assert self.process.poll() is None, self.log()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                return False
            return True

        eventually(accepts)

    def stop(self) -> None:
        """End it and all that it has started."""
        end(self.process)
        self._log.close()


class Redis:
    """A Redis without persistence."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> None:
        options = ("--bind", "127.0.0.1", "--port", str(self._port), "--save", "", "--appendonly", "no")
        self._service = Service(self._folder, "redis-server", *options)
        self._service.wait_for(self._port)

    def stop(self) -> None:
        self._service.stop()

    def clear(self) -> None:
        subprocess.run(["redis-cli", "-p", str(self._port), "FLUSHALL"], check=True, stdout=subprocess.DEVNULL)


class RabbitMQ:
    """A RabbitMQ node with its own name server; messages not acknowledged within `PATIENCE_S` are redelivered."""

    PATIENCE_S = 4

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._epmd_port, distribution_port = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"
        (folder / "plugins").write_text("[].\n")
        patience = f"[{{rabbit, [{{consumer_timeout, {self.PATIENCE_S * 1000}}}, {{channel_tick_interval, 1000}}]}}]."
        (folder / "advanced.config").write_text(patience)
        self._environment = {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        # Started by the node it would outlive it.
        self._names = Service(folder, "epmd", "-port", str(self._epmd_port), **self._environment)
        self._names.wait_for(self._epmd_port)
        self.start()

    def start(self) -> None:
        # Debian's /usr/sbin/rabbitmq-server changes the user; this one runs as anybody.
        self._service = Service(self._folder, "/usr/lib/rabbitmq/bin/rabbitmq-server", **self._environment)
        self._service.wait_for(self._port)

    def stop(self) -> None:
        self._service.stop()

    def clear(self) -> None:
        with amqp.Connection(f"127.0.0.1:{self._port}") as connection, connection.channel() as channel:
            channel.queue_delete("celery")

    def close(self) -> None:
        self.stop()
        self._names.stop()


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    with TemporaryDirectory() as folder:
        server = Redis(Path(folder))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    with TemporaryDirectory() as folder:
        server = RabbitMQ(Path(folder))
        try:
            yield server
        finally:
            server.close()


@pytest.fixture(scope="session", params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Broker:
    server: Broker = request.getfixturevalue(request.param)
    return server


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[Mapping[str, str]]:
    """The variables by which programs find a store like S3, in which a bucket ``shared`` is."""
    with TemporaryDirectory() as folder:
        port = free_port()
        command = ("-m", "moto.server", "--host", "127.0.0.1", "--port", str(port))
        server = Service(Path(folder), sys.executable, *command)
        try:
            server.wait_for(port)
            environment = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                boto3.client("s3").create_bucket(Bucket="shared")
            yield environment
        finally:
            server.stop()


@pytest.fixture
def s3(s3_environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of an empty store, which this process can use."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://shared/{tmp_path.name}"
