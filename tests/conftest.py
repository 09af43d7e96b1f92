from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from streaming_server.jobs import uploads
from streaming_server.jobs.examiner import Examiner
from tests.support import children

# A machine that is busy with other tests can take any time for an example. Every run has the same examples, so that a
# failure is always one of the change under test; `--hypothesis-profile random` searches for others.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("tests", settings.get_profile("random"), derandomize=True)
settings.load_profile("tests")

pytest_plugins = ("tests.support.postgres", "tests.support.brokers")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def shared_examiner() -> Iterator[None]:
    """The servers in this process share the child process that examines recordings; its start takes a while."""

    class SharedExaminer(Examiner):
        def close(self) -> None:
            """Stay for the next server."""

    examiner = SharedExaminer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads, "Examiner", lambda: examiner)
        yield
    Examiner.close(examiner)


def pytest_configure(config: pytest.Config) -> None:
    # Set before torch is imported: workers that run beside each other share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A shell's background job ignores SIGINT and so would every process that it starts, Ray's among them.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not _is_worker(config):
        children.adopt_orphans()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two more than the number of cores, because tests often wait."""
    return min(len(os.sched_getaffinity(0)) + 2, 8)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what is imported out of every later garbage collection: traversing it takes 3 % of the run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that no worker runs one of them alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.parent.name != "scale", item.path not in slow))


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Fail the run if it leaves processes behind, and kill them."""
    yield
    left = [] if _is_worker(session.config) else children.end_leftovers(float(os.environ.get("TEST_LEFTOVERS_S", "30")))
    if not left:
        return
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        text = "\n".join(["processes outlive the run:", *left])
        report = pytest.TestReport("tests", ("tests", None, "the run"), {}, "failed", text, "teardown")
        reporter.stats.setdefault("error", []).append(report)


def _is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of pytest-xdist's workers."""
    return hasattr(config, "workerinput")
