"""Cost of the child process: espeak-ng in this process and in a child process, alternately.

The tenth percentile shows the cost itself; the median includes interference by other processes.

Usage: python -m benchmarks.espeak_child [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import aclosing

from benchmarks.common import SENTENCE, percentile, table
from streaming_server.engines.espeak.library import EspeakLibrary, Timbre, find_files
from streaming_server.engines.espeak.process import EspeakProcess, Utterance

SENTENCES = 24
"""Two minutes of speech, for the throughput."""
PAUSE_S = 0.02
"""Pause between two requests."""


def in_process(library: EspeakLibrary, text: str) -> tuple[float, float]:
    """Return the milliseconds to the first and to the last chunk."""
    began_s = time.perf_counter()
    arrivals_s: list[float] = []
    library.speak(text, "en-us", Timbre(), lambda _: arrivals_s.append(time.perf_counter()))
    return (arrivals_s[0] - began_s) * 1000, (arrivals_s[-1] - began_s) * 1000


async def in_child(process: EspeakProcess, text: str) -> tuple[float, float]:
    """Return the milliseconds to the first and to the last chunk."""
    began_s = time.perf_counter()
    first_s = last_s = 0.0
    async with aclosing(process.speak([Utterance(text, "en-us")])) as chunks:
        async for _ in chunks:
            last_s = time.perf_counter()
            first_s = first_s or last_s
    return (first_s - began_s) * 1000, (last_s - began_s) * 1000


async def measure(rounds: int) -> None:
    library, process = EspeakLibrary(*find_files()), EspeakProcess()
    rows = []
    for name, text, which, count in (
        ("first chunk", SENTENCE, 0, rounds),
        ("one sentence", SENTENCE, 1, rounds),
        (f"{SENTENCES} sentences", SENTENCE * SENTENCES, 1, max(rounds // 5, 3)),
    ):
        library_ms, child_ms = [], []
        for _ in range(count + 1):
            library_ms.append(in_process(library, text)[which])
            await asyncio.sleep(PAUSE_S)
            child_ms.append((await in_child(process, text))[which])
            await asyncio.sleep(PAUSE_S)
        for percent in (10, 50):
            here, there = percentile(library_ms[1:], percent), percentile(child_ms[1:], percent)
            rows.append([f"{name}, p{percent}", f"{here:.2f}", f"{there:.2f}", f"{there / here:.2f}", str(count)])
    await process.aclose()
    table(["ms", "in process", "child", "child / in process", "n"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
