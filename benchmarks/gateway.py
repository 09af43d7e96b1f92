"""Overhead of HAProxy with ``deploy/haproxy.cfg`` and of Ray Serve with ``deploy/ray.yaml`` for one server.

All variants run alternately in one run: first audio, time from a disconnect to a free slot, throughput of short texts,
and the next request after a client that reads nothing.

Usage: python -m benchmarks.gateway [--rounds N] [--ray]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.common import SENTENCE, first_audio_ms, percentile, running_server, table
from benchmarks.disconnect import freed_ms
from tests.support.children import free_port
from tests.support.gateway import gateway
from tests.support.server import RawClient
from tests.support.serving import ray_serve

OPUS, PCM = "/synthesize_stream_opus", "/synthesize_stream"
CLIENTS = 16
UNREAD = SENTENCE * 60
"""Five minutes of speech, 14 MB of PCM: more than all buffers on the path hold."""
PATIENCE_S = 5.0


async def throughput(port: int, clients: int, requests: int) -> float:
    """Return the sentences per second with this number of concurrent clients."""

    async def one() -> None:
        for _ in range(requests):
            await first_audio_ms(port, PCM, SENTENCE, to_the_end=True)

    began_s = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return clients * requests / (time.perf_counter() - began_s)


async def behind_a_sleeper_ms(port: int) -> str:
    """Return the first audio of a request after a client that reads nothing."""
    sleeper = RawClient(port, PCM, {"text": UNREAD}, receive_buffer=4096)
    await asyncio.sleep(1.0)
    try:
        took_ms = await asyncio.wait_for(first_audio_ms(port, OPUS, SENTENCE), PATIENCE_S)
    except TimeoutError:
        return f"> {PATIENCE_S:g} s"
    finally:
        sleeper.close()
    return f"{took_ms:.1f} ms"


async def measure(ports: Mapping[str, int], rounds: int) -> None:
    first: dict[str, list[float]] = {name: [] for name in ports}
    freed: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(rounds + 1):
        for name, port in _in_turn(ports, number):
            took_ms = await first_audio_ms(port, OPUS, SENTENCE, to_the_end=True)
            if number:  # the first round warms them up
                first[name].append(took_ms)
    for number in range(rounds // 2):
        for name, port in _in_turn(ports, number):
            freed[name].append(await freed_ms(port, OPUS, None if name == "Ray Serve" else ports["direct"]))
    rows = [
        [f"{what}, {name}", *(f"{percentile(times, percent):.2f}" for percent in (50, 95, 99)), bar]
        for what, measured, bar in (("first audio", first, "+2 ms"), ("free after a close", freed, "100 ms"))
        for name, times in measured.items()
    ]
    table(["ms", "p50", "p95", "p99", "bar"], rows)
    for name in list(ports)[1:]:
        print(f"first audio, p50, {name}: {percentile(first[name], 50) - percentile(first['direct'], 50):+.2f} ms")


def _in_turn(ports: Mapping[str, int], number: int) -> Iterator[tuple[str, int]]:
    """Rotate the order, so that effects on the next variant do not always hit the same one."""
    names = list(ports)
    for at in range(len(names)):
        name = names[(at + number) % len(names)]
        yield name, ports[name]


async def measure_throughput(ports: Mapping[str, int], haproxy: psutil.Process) -> None:
    for clients in (1, CLIENTS):
        requests = 256 // clients
        for name, port in ports.items():
            before = sum(haproxy.cpu_times()[:2])
            rate = await throughput(port, clients, requests)
            used_ms = (sum(haproxy.cpu_times()[:2]) - before) / 256 * 1000
            cost = f", {used_ms:.2f} ms of HAProxy's CPU each" if name == "HAProxy" else ""
            print(f"sentences a second as PCM, {clients} at once, {name}: {rate:.0f}{cost}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--ray", action="store_true", help="include Ray Serve")
    options = parser.parse_args()
    agent, nobody = free_port(), (free_port(), free_port())
    with ExitStack() as stack:
        server = stack.enter_context(running_server(ENGINE="espeak", AGENT_PORT=str(agent)))
        front = stack.enter_context(gateway(server.port, nobody[0], (agent, nobody[1]), present=1))
        deaf = stack.enter_context(gateway(server.port, nobody[0], (nobody[1], nobody[1]), present=1))
        ports = {"direct": server.port, "HAProxy": front.port}
        if options.ray:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            ports["Ray Serve"] = stack.enter_context(ray_serve(folder, replicas=1)).port
        asyncio.run(measure(ports, options.rounds))
        asyncio.run(measure_throughput(ports, psutil.Process(front.process.pid)))
        for name, port in {**ports, "HAProxy without the agent": deaf.port}.items():
            print(f"first audio behind a reader that reads nothing, {name}: {asyncio.run(behind_a_sleeper_ms(port))}")


if __name__ == "__main__":
    main()
