"""espeak-ng in a child process: crashes affect one request, and the child is restricted and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from random import Random

import psutil
import pytest

from streaming_server.engines.espeak import bounds
from streaming_server.engines.espeak.bounds import bounded
from streaming_server.engines.espeak.engine import utterances
from streaming_server.engines.espeak.library import Timbre
from streaming_server.engines.espeak.process import EspeakProcess, Utterance
from streaming_server.engines.espeak.voices import PRESETS
from streaming_server.errors import EngineFailed
from tests.support.espeak_fuzz import odd_text, speak_odd_text

pytestmark = pytest.mark.anyio
ENGLISH = "The north wind and the sun were disputing which of them was the stronger. "
HOURS = [Utterance(ENGLISH * 20_000, "en-us")]
"""Two minutes of work for espeak-ng."""


@pytest.fixture
async def process() -> AsyncIterator[EspeakProcess]:
    process = EspeakProcess()
    yield process
    await process.aclose()


async def spoken(process: EspeakProcess, *spoken_in_turn: Utterance) -> bytes:
    async with aclosing(process.speak(spoken_in_turn)) as chunks:
        return b"".join([chunk.samples.tobytes() async for chunk in chunks])


def children_of(process_id: int) -> list[psutil.Process]:
    """The processes that the server started; orphans of a killed one may have come to this process too."""
    return [
        child
        for child in psutil.Process(process_id).children()
        if child.status() != psutil.STATUS_ZOMBIE and "streaming_server.engines.espeak.child" in child.cmdline()
    ]


def child_of(process_id: int) -> psutil.Process:
    (child,) = children_of(process_id)
    return child


def opened_by(process: psutil.Process) -> set[str]:
    opened = set()
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            opened.add(entry.readlink().as_posix())
    return opened


async def gone(processes: list[psutil.Process]) -> None:
    """Wait until they have ended; the test's own deadline bounds it."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    while any(map(runs, processes)):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
async def test_a_crash_ends_its_request_alone(process: EspeakProcess, number: signal.Signals) -> None:
    before = await spoken(process, Utterance("fine", "en-us"))
    chunks = process.speak(HOURS)
    await anext(chunks)
    for worker in child_of(os.getpid()).children():
        worker.send_signal(number)
    with pytest.raises(EngineFailed, match=f"crashed on this text \\({number.name}\\); other requests"):
        async for _ in chunks:
            pass
    assert await spoken(process, Utterance("fine", "en-us")) == before


async def test_a_buffer_overflow_of_espeak_ends_its_request_alone(process: EspeakProcess) -> None:
    before = await spoken(process, Utterance("fine", "en-us"))
    with pytest.raises(EngineFailed, match="crashed on this text"):
        await spoken(process, Utterance("a." * 400, "en-us"))
    assert await spoken(process, Utterance("fine", "en-us")) == before


async def test_a_process_that_was_killed_is_replaced(process: EspeakProcess) -> None:
    before = await spoken(process, Utterance("fine", "en-us"))
    child = child_of(os.getpid())
    family = [child, *child.children()]
    child.kill()
    await gone(family)
    assert await spoken(process, Utterance("fine", "en-us")) == before
    chunks = process.speak(HOURS)
    await anext(chunks)
    child_of(os.getpid()).kill()
    with pytest.raises(EngineFailed, match="process died"):
        async for _ in chunks:
            pass
    assert await spoken(process, Utterance("fine", "en-us")) == before


async def test_a_request_gives_the_same_samples_whatever_came_before(process: EspeakProcess) -> None:
    texts = [ENGLISH, "北风和太阳正在争论谁更强大。", "Привет, мир!"]
    for preset in PRESETS:
        first = [await spoken(process, *utterances(text, preset.timbre)) for text in texts]
        again = [await spoken(process, *utterances(text, preset.timbre)) for text in reversed(texts)]
        assert first == again[::-1], preset.name
    other = EspeakProcess()
    assert await spoken(other, *utterances(ENGLISH, PRESETS[3].timbre)) == await spoken(
        process, *utterances(ENGLISH, PRESETS[3].timbre)
    )
    await other.aclose()


async def test_closing_kills_the_worker_and_the_next_request_works(process: EspeakProcess) -> None:
    before = await spoken(process, Utterance("fine", "en-us"))
    for consumed in (0, 1, 30):
        chunks = process.speak(HOURS)
        for _ in range(consumed):
            await anext(chunks)
        await chunks.aclose()
        assert await spoken(process, Utterance("fine", "en-us")) == before
    task = asyncio.create_task(spoken(process, *HOURS))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await spoken(process, Utterance("fine", "en-us")) == before


async def test_one_that_is_cancelled_as_it_ends_does_not_block_the_next(process: EspeakProcess) -> None:
    fine = Utterance("fine", "en-us")
    before = [chunk async for chunk in process.speak([fine])]
    child, messages = child_of(os.getpid()), process._idle[0]._socket
    child.suspend()  # it tells of the end; the worker has the request
    chunks = process.speak([fine])
    for _ in before:
        await anext(chunks)
    ending = asyncio.create_task(anext(chunks))
    await asyncio.sleep(0.01)
    child.resume()
    select.select([messages], [], [], 180)
    for _ in range(2):
        await asyncio.sleep(0)  # the event loop has seen the message, and the task has not
    ending.cancel()
    async with asyncio.timeout(180):
        await asyncio.wait([ending])
        await chunks.aclose()
        assert await spoken(process, fine) == b"".join(chunk.samples.tobytes() for chunk in before)


async def test_requests_at_once_take_turns(process: EspeakProcess) -> None:
    items = [Utterance(text, "en-us") for text in ("one", "two", "three")]
    alone = [await spoken(process, item) for item in items]
    assert alone == await asyncio.gather(*(spoken(process, item) for item in items))


async def test_one_that_is_not_read_holds_up_nobody_where_more_are_reserved(process: EspeakProcess) -> None:
    fine = Utterance("fine", "en-us")
    expected = await spoken(process, fine)
    process.reserve(2)
    async with aclosing(process.speak(HOURS)) as stopped, asyncio.timeout(180):
        await anext(stopped)
        assert await spoken(process, fine) == expected
        assert await spoken(process, fine) == expected
        assert (await anext(stopped)).samples.size
    assert await spoken(process, fine) == expected
    children = children_of(os.getpid())
    assert len(children) == 2
    await process.aclose()
    assert not any(child.is_running() for child in children)


async def test_an_unknown_variant_or_language_is_refused(process: EspeakProcess) -> None:
    with pytest.raises(EngineFailed, match="variant nobody"):
        await spoken(process, Utterance("a", "en-us", Timbre("nobody")))
    with pytest.raises(EngineFailed, match="voice zz"):
        await spoken(process, Utterance("a", "zz"))
    assert await spoken(process, Utterance("a", "en-us"))


async def test_the_child_inherits_neither_descriptors_nor_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    with (tmp_path / "private").open("w") as private:
        os.set_inheritable(private.fileno(), True)
        process = EspeakProcess()
        chunks = process.speak(HOURS)
        await anext(chunks)
        child = child_of(os.getpid())
        family = [child, *child.children()]
        assert len(family) == 3
        for member in family:
            # The spare worker may still be reading voices.
            while not all(name.startswith(("socket:", "pipe:", "/dev/null")) for name in opened_by(member)):
                await asyncio.sleep(0.01)
            assert "hidden" not in member.environ().values()
        await chunks.aclose()
        await process.aclose()
        await gone(family)


async def test_a_signal_to_all_processes_of_the_server_ends_no_stream() -> None:
    """As Ctrl+C and `systemctl stop` send it; the server finishes its streams first."""
    process = EspeakProcess()
    chunks = process.speak(HOURS)
    await anext(chunks)
    child = child_of(os.getpid())
    for member in (child, *child.children()):
        member.send_signal(signal.SIGINT)
        member.send_signal(signal.SIGTERM)
    for _ in range(30):
        await anext(chunks)
    assert child_of(os.getpid()) == child
    await chunks.aclose()
    await process.aclose()


CONFINED = """
import ctypes, os, resource, socket, sys
from pathlib import Path
from streaming_server.sandbox import confine_process, confine_worker

def allowed(action):
    try:
        action()
    except OSError:
        return False
    return True

def connect():
    with socket.create_connection(("127.0.0.1", int(sys.argv[2])), 5): pass

folder = Path(sys.argv[1])
libc = ctypes.CDLL(None)
landlock = libc.syscall(444, None, 0, 1) > 0
namespaces = os.fork() == 0
if namespaces:
    os._exit(libc.unshare(0x50000000) != 0)
namespaces = os.wait()[1] == 0
assert allowed(connect)
confine_process(folder / "data")
confine_worker(os.getppid(), memory_bytes=512 << 20, cpu_s=600)
assert allowed(lambda: (folder / "data" / "readable").read_bytes())
assert allowed(lambda: (folder / "private").read_bytes()) != landlock
assert not allowed(lambda: (folder / "data" / "new").write_bytes(b"too much"))
assert allowed(connect) != namespaces
assert resource.getrlimit(resource.RLIMIT_AS)[1] == 512 << 20
assert resource.getrlimit(resource.RLIMIT_NPROC)[1] == 0
print("confined", landlock, namespaces)
"""


def test_a_confined_process_reads_its_data_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("data/readable", "private"):
        (tmp_path / name).write_text("content")
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(tmp_path), str(server.getsockname()[1])]
        done = subprocess.run(
            [sys.executable, "-c", CONFINED, *arguments], capture_output=True, text=True, check=False, timeout=120
        )
    assert done.stdout.startswith("confined"), done.stderr


PARENT = """
import asyncio, time
from streaming_server.engines.espeak.process import EspeakProcess, Utterance

async def main():
    chunks = EspeakProcess().speak([Utterance("The north wind and the sun. " * 50_000, "en-us")])
    await anext(chunks)
    print("speaking", flush=True)
    async for _ in chunks: pass

asyncio.run(main())
"""


def test_the_child_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "speaking\n"
        child = child_of(parent.pid)
        family = [child, *child.children()]
        parent.kill()
    asyncio.run(gone(family))


@pytest.mark.parametrize("seed", range(4))
async def test_odd_texts_are_spoken(process: EspeakProcess, seed: int) -> None:
    rng = Random(seed)
    for _ in range(12):
        text = odd_text(rng, 400)
        try:
            await speak_odd_text(process, text, rng)
        except EngineFailed as error:
            pytest.fail(f"{text!r}: {error}")


@pytest.mark.parametrize("text", ["a.", "e.g.", "й.", "好.", "s'", "?い.。", "..ə", "a\u0301", "a. "], ids=ascii)
async def test_texts_that_overflow_espeak_are_bounded(process: EspeakProcess, text: str) -> None:
    async with aclosing(process.speak(utterances(text * (2000 // len(text)), Timbre(rate_wpm=450)))) as chunks:
        async for _ in chunks:
            pass


@pytest.mark.parametrize(
    "text",
    [
        'Dr. Smith, e.g. in the U.S.A., said: "don\'t!"',
        "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"[:60],
        "2024年，我用Python写代码。",
        "नमस्ते दुनिया",
        "1234567890" * 6,
    ],
)
def test_ordinary_texts_are_not_changed(text: str) -> None:
    assert bounded(text) == text


def test_what_is_bounded() -> None:
    assert bounded("a\0b\x1bc\nd") == "a b c\nd"
    assert bounded("e" + "\u0301" * 50 + "x") == "e" + "\u0301" * 4 + "x"
    assert bounded("a." * 25) == ("a." * 11 + "a ") * 2 + "a."
    pieces = bounded("word-" * 30).split(" ")
    assert all(piece.endswith("-") and len(piece) <= bounds.MAX_WORD for piece in pieces)
    assert "".join(pieces) == "word-" * 30
    assert [len(piece) for piece in bounded("x" * 130).split(" ")] == [60, 60, 10]
