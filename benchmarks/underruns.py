"""Does playback ever stop? First audio and underruns of many clients at once, by each client's own clock.

A client plays Ogg Opus as it arrives, from the first audio on (strict) or 0.1 s later, as the server's metric has it;
its clock stands whenever it has played all that it has received. The server's own count for the same streams is printed
too. Last, sentences arrive at intervals while long texts are synthesised; with ``MAX_CONCURRENT`` above 1 they do not
wait for these.

Usage: python -m benchmarks.underruns [--engine NAME] [--clients N] [--rounds N] [--texts N] [--every S]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.common import SENTENCE, percentile, request, running_server, table
from streaming_server.audio.opus import CLOCK_HZ
from streaming_server.speech.playback import PREBUFFER_S

PATH = "/synthesize_stream_opus"
TEXT = (
    "The old man with the long grey coat walked slowly down the road, and nobody asked him where he was going. "
    "It was late in the evening. The shops had closed, and the lamps were being lit one by one."
)
"""Ten seconds of speech."""
LONG_TEXT = TEXT * 12
NEWCOMERS = 10
_GRANULE = slice(6, 14)
"""The field of a page's header that holds the position of its last sample."""


@dataclass(frozen=True)
class Arrival:
    """Audio as a client received it; seconds."""

    at_s: float
    """Since the request."""
    audio_s: float
    """The duration of all audio so far."""


async def arrivals(port: int, text: str) -> list[Arrival]:
    """One request to its end."""
    began_s = time.perf_counter()
    found: list[Arrival] = []
    async with request(port, PATH, {"text": text}) as reader:
        rest = b""
        while piece := await reader.read(65536):
            rest += piece
            while (page := rest.find(b"OggS")) >= 0 and len(rest) >= page + _GRANULE.stop:
                granule = int.from_bytes(rest[page:][_GRANULE], "little")
                if granule:
                    found.append(Arrival(time.perf_counter() - began_s, granule / CLOCK_HZ))
                rest = rest[page + _GRANULE.stop :]
    if not found:
        raise RuntimeError(f"no audio: {rest[:300]!r}")
    return found


def underruns(received: Sequence[Arrival], prebuffer_s: float) -> list[float]:
    """How long each one lasted."""
    gaps: list[float] = []
    dry_s = received[0].at_s + prebuffer_s + received[0].audio_s
    for before, now in pairwise(received):
        if now.at_s > dry_s:
            gaps.append(now.at_s - dry_s)
            dry_s = now.at_s + prebuffer_s
        dry_s += now.audio_s - before.audio_s
    return gaps


async def counted_by_server(port: int) -> float:
    async with request(port, "/metrics") as reader:
        answer = (await reader.read()).decode()
    return float(answer.partition("\nspeech_underruns_total ")[2].split()[0])


async def newcomers(port: int, texts: int, every_s: float) -> None:
    """Short sentences beside long texts."""
    long = [asyncio.create_task(arrivals(port, LONG_TEXT)) for _ in range(texts)]
    short: list[asyncio.Task[list[Arrival]]] = []
    for _ in range(NEWCOMERS):
        await asyncio.sleep(every_s)
        short.append(asyncio.create_task(arrivals(port, SENTENCE)))
    rows = []
    for name, tasks in ((f"{texts} texts of two minutes", long), (f"{NEWCOMERS} sentences beside them", short)):
        streams = await asyncio.gather(*tasks)
        first_ms = [stream[0].at_s * 1000 for stream in streams]
        gaps = [gap for stream in streams for gap in underruns(stream, 0.0)]
        row = [f"{percentile(first_ms, percent):.0f}" for percent in (50, 95)]
        rows.append([name, *row, str(len(gaps)), f"{max(gaps, default=0.0) * 1000:.0f}"])
    table(["streams", "first audio, ms p50", "p95", "underruns, strict", "longest, ms"], rows)


async def at_once(port: int, clients: int, rounds: int) -> None:
    """One client, and several that begin at the same time."""
    await arrivals(port, TEXT)
    rows = []
    for count in (1, clients):
        before = await counted_by_server(port)
        streams: list[list[Arrival]] = []
        for _ in range(rounds):
            streams += await asyncio.gather(*(arrivals(port, TEXT) for _ in range(count)))
        first_ms = [stream[0].at_s * 1000 for stream in streams]
        row = [str(count), str(len(streams)), *(f"{percentile(first_ms, percent):.0f}" for percent in (50, 95))]
        for prebuffer_s in (0.0, PREBUFFER_S):
            gaps = [underruns(stream, prebuffer_s) for stream in streams]
            longest_ms = max((max(stream) * 1000 for stream in gaps if stream), default=0.0)
            row += [str(sum(map(len, gaps))), f"{longest_ms:.0f}"]
        rows.append([*row, f"{await counted_by_server(port) - before:.0f}"])
    head = ["clients at once", "streams", "first audio, ms p50", "p95", "underruns, strict", "longest, ms"]
    table([*head, "underruns", "longest, ms", "counted by the server"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="hibari")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=12, help="texts of two minutes")
    parser.add_argument("--every", type=float, default=0.2, help="interval of the sentences beside them, in seconds")
    options = parser.parse_args()
    with running_server(ENGINE=options.engine) as server:
        asyncio.run(at_once(server.port, options.clients, options.rounds))
        print()
        asyncio.run(newcomers(server.port, options.texts, options.every))


if __name__ == "__main__":
    main()
