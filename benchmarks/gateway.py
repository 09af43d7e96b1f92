"""What does HAProxy with ``deploy/haproxy.cfg`` cost, in front of one server? Both ways in turn, in one run.

First audio with and without it; from a client's close to a free slot; and short texts one after the other, where the
gateway's turn between two of them shows.

Usage: python -m benchmarks.gateway [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import time

from benchmarks.common import SENTENCE, first_audio_ms, percentile, running_server, table
from benchmarks.disconnect import freed_ms
from tests.live.gateway import free_port, gateway

OPUS = "/synthesize_stream_opus"
CLIENTS = 16


async def throughput(port: int, clients: int, requests: int) -> float:
    """Sentences a second while so many clients ask all the time."""

    async def one() -> None:
        for _ in range(requests):
            await first_audio_ms(port, OPUS, SENTENCE, to_the_end=True)

    began_s = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return clients * requests / (time.perf_counter() - began_s)


async def measure(direct: int, behind: int, rounds: int) -> None:
    ports = {"direct": direct, "HAProxy": behind}
    first: dict[str, list[float]] = {name: [] for name in ports}
    freed: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(rounds + 1):
        for name, port in ports.items():
            took_ms = await first_audio_ms(port, OPUS, SENTENCE, to_the_end=True)
            if number:  # the first is to warm both
                first[name].append(took_ms)
    for _ in range(rounds // 2):
        for name, port in ports.items():
            freed[name].append(await freed_ms(port, OPUS, direct))
    rows = [
        [f"{what}, {name}", *(f"{percentile(times, percent):.2f}" for percent in (50, 95, 99)), bar]
        for what, measured, bar in (("first audio", first, "+2 ms"), ("freed after a close", freed, "100 ms"))
        for name, times in measured.items()
    ]
    table(["ms", "p50", "p95", "p99", "bar"], rows)
    added = percentile(first["HAProxy"], 50) - percentile(first["direct"], 50)
    print(f"\nfirst audio, p50: {added:+.2f} ms")
    for clients in (1, CLIENTS):
        rates = [await throughput(port, clients, 64 // clients) for port in ports.values()]
        print(f"sentences a second, {clients} at once: direct {rates[0]:.1f}, HAProxy {rates[1]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    agent = free_port()
    with (
        running_server(ENGINE="espeak", AGENT_PORT=str(agent)) as server,
        gateway(server.port, free_port(), (agent, free_port())) as front,
    ):
        asyncio.run(measure(server.port, front.port, rounds))


if __name__ == "__main__":
    main()
