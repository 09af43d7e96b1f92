"""How long until a client hears something? First audio over HTTP, one client and sixteen at once.

Floor: the same engine's first chunk, in this process, without HTTP, encoder or slot.

Usage: python -m benchmarks.first_audio [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import aclosing
from pathlib import Path

from benchmarks.common import SENTENCE, TEXT, first_audio_ms, get_json, percentile, running_server, table
from streaming_server.domain import SpeechRequest, Voice
from streaming_server.engines.espeak.engine import EspeakEngine

CLIENTS = 16
STATUS_EVERY_S = 0.01


async def engine_alone(rounds: int) -> list[float]:
    engine = EspeakEngine()
    await engine.warm()
    request = SpeechRequest(TEXT, Voice("voice_01", Path("reference_audios/voice_01.wav"), 0))
    times = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        async with aclosing(engine.stream(request)) as chunks:
            await anext(chunks)
        times.append((time.perf_counter() - began_s) * 1000)
    await engine.aclose()
    return times


async def one_client(port: int, path: str, rounds: int) -> list[float]:
    await first_audio_ms(port, path)
    return [await first_audio_ms(port, path) for _ in range(rounds)]


async def many_clients(port: int, rounds: int, text: str) -> tuple[list[float], list[float]]:
    """First audio of each client, and what `/opus_queue_status` took meanwhile."""
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


async def measure(port: int, rounds: int) -> None:
    floor = await engine_alone(rounds)
    opus = await one_client(port, "/synthesize_stream_opus", rounds)
    pcm = await one_client(port, "/synthesize_stream", rounds)
    many, status = await many_clients(port, max(3, rounds // 10), TEXT)
    short, _ = await many_clients(port, max(3, rounds // 10), SENTENCE)
    measured = (
        ("engine alone, first chunk", floor, ""),
        ("Opus over HTTP, 1 client", opus, "p50 <= 3 ms"),
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
    print(f"\nfirst Opus audio / engine alone: {percentile(opus, 50) / percentile(floor, 50):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    with running_server() as server:
        asyncio.run(measure(server.port, rounds))


if __name__ == "__main__":
    main()
