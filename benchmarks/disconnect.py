"""Time from a client's disconnect during a stream of the default voice until the slot is free.

It ends with the first `/opus_queue_status` that reports a free slot; the floor is the time of such a request.

Usage: python -m benchmarks.disconnect [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import time

from benchmarks.common import TEXT, get_json, percentile, request, running_server, table


async def freed_ms(port: int, path: str, server: int | None = None) -> float:
    """Disconnect after the first bytes of a long text; ``server`` is the server behind ``port``, if different."""
    async with request(port, path, {"text": TEXT * 100}) as reader:
        await reader.read(200)
        while not (await get_json(server or port, "/opus_queue_status"))["is_processing"]:
            await asyncio.sleep(0.001)
        began_s = time.perf_counter()
    while (await get_json(server or port, "/opus_queue_status"))["is_processing"]:
        pass
    return (time.perf_counter() - began_s) * 1000


async def status_ms(port: int) -> float:
    began_s = time.perf_counter()
    await get_json(port, "/opus_queue_status")
    return (time.perf_counter() - began_s) * 1000


async def measure(port: int, rounds: int) -> None:
    floor = [await status_ms(port) for _ in range(rounds)]
    rows = [["status request alone", *(f"{percentile(floor, percent):.2f}" for percent in (50, 95, 99)), ""]]
    for path in ("/synthesize_stream_opus", "/synthesize_stream"):
        times = [await freed_ms(port, path) for _ in range(rounds)]
        rows.append([path, *(f"{percentile(times, percent):.2f}" for percent in (50, 95, 99)), "p99 <= 100 ms"])
    table(["ms until the slot is free", "p50", "p95", "p99", "bar"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    with running_server(ENGINE="hibari") as server:
        asyncio.run(measure(server.port, rounds))


if __name__ == "__main__":
    main()
