"""Time to the first audio over HTTP, with one client and with sixteen concurrent clients.

The floor is a bare Starlette stream of the same engine's chunks (`benchmarks.bare_stream`), requested alternately.

Usage: python -m benchmarks.first_audio [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import time

from benchmarks.common import SENTENCE, TEXT, first_audio_ms, get_json, percentile, running_server, table

CLIENTS = 16
STATUS_EVERY_S = 0.01
PAUSE_S = 0.05
"""Pause between requests, in which the previous synthesis ends."""


async def one_client(bare: int, port: int, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Measure the first audio of the bare stream, of Opus and of PCM alternately."""
    paths = ((bare, "/bare"), (port, "/synthesize_stream_opus"), (port, "/synthesize_stream"))
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for number in range(rounds + 1):
        for found, (at, path) in zip(times, paths, strict=True):
            elapsed_ms = await first_audio_ms(at, path, SENTENCE)
            if number:
                found.append(elapsed_ms)
            await asyncio.sleep(PAUSE_S)
    return times


async def many_clients(port: int, rounds: int, text: str) -> tuple[list[float], list[float]]:
    """Return the first audio of each client, and the times of `/opus_queue_status` meanwhile."""
    first: list[float] = []
    status: list[float] = []
    for _ in range(rounds):
        clients = [
            asyncio.create_task(first_audio_ms(port, "/synthesize_stream_opus", text, to_the_end=True))
            for _ in range(CLIENTS)
        ]
        while not all(client.done() for client in clients):
            began_s = time.perf_counter()
            await get_json(port, "/opus_queue_status")
            status.append((time.perf_counter() - began_s) * 1000)
            await asyncio.sleep(STATUS_EVERY_S)
        first += [client.result() for client in clients]
    return first, status


async def measure(bare: int, port: int, rounds: int) -> None:
    floor, opus, pcm = await one_client(bare, port, rounds)
    many, status = await many_clients(port, max(3, rounds // 10), TEXT)
    short, _ = await many_clients(port, max(3, rounds // 10), SENTENCE)
    measured = (
        ("bare Starlette stream of the engine, 1 client", floor, ""),
        ("Opus over HTTP, 1 client", opus, "p50 <= 1.5 x bare"),
        ("PCM over HTTP, 1 client", pcm, ""),
        (f"Opus over HTTP, {CLIENTS} at once, 5 s of speech", short, "p50 <= 110 ms"),
        (f"Opus over HTTP, {CLIENTS} at once, 11 s of speech", many, "p50 <= 110 ms"),
        (f"/opus_queue_status while {CLIENTS} run", status, "p99 <= 20 ms"),
    )
    rows = [
        [name, *(f"{percentile(times, percent):.2f}" for percent in (50, 95, 99)), str(len(times)), bar]
        for name, times, bar in measured
    ]
    table(["ms", "p50", "p95", "p99", "n", "bar"], rows)
    print(f"\nfirst Opus audio / bare stream: {percentile(opus, 50) / percentile(floor, 50):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    with running_server("benchmarks.bare_stream") as bare, running_server(ENGINE="espeak") as server:
        asyncio.run(measure(bare.port, server.port, rounds))


if __name__ == "__main__":
    main()
