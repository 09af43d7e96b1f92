"""Longest delay of other requests by a request body of the maximum size.

Posts bodies of the maximum size that are as expensive as possible to every JSON route, while another client requests
`/health` continuously; the longest response is the stall. The floor is the longest response without other requests.

Usage: python -m benchmarks.large_bodies [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator

from benchmarks.common import request, running_server, status_of, table

LIMIT_BYTES = 2 * 1024 * 1024
LIMIT_VALUES = 29_000
BAR_MS = 200.0
ROUTES: dict[str, dict[str, object]] = {
    "/synthesize": {"text": "a"},
    "/synthesize_stream_opus": {"text": "a"},
    "/v1/audio/speech": {"model": "tts-1", "input": "a"},
    "/tts_url": {"text": "a", "spk_audio_path": "voice_01.wav"},
    "/tts": {"text": "a", "character": "alloy"},
    "/generate": {"text": "a"},
    "/api/v1/tts": {"text": "a", "prompt_audio_id": "voice_01"},
    "/v1/workflows": {"workflow_config": {"workflow_chain": ["indextts.health_check"]}},
}
LISTS = {"/tts_url": "audio_paths", "/v1/workflows": "workflow_config", "/api/v1/tts": "emo_vector"}
TEXTS = {
    "/v1/audio/speech": "instructions",
    "/tts_url": "emo_text",
    "/generate": "ref_audio",
    "/api/v1/tts": "emo_text",
    "/v1/workflows": "video_path",
}


def bodies(path: str) -> Iterator[tuple[str, bytes]]:
    """Return bodies of at most `LIMIT_BYTES` by name, some with the maximum number of values."""
    template = {**ROUTES[path], LISTS.get(path, "other"): "?"}
    before, after = json.dumps(template).rsplit('"?"', 1)

    def filled(item: Callable[[int], str], count: int) -> bytes:
        return f"{before}[{','.join(item(at) for at in range(count))}]{after}".encode()

    room = LIMIT_BYTES - len(before) - len(after) - 2
    for name, item in {"numbers": "1", "objects": "{}", "nulls": "null", "lists": "[[[[[[[[[[]]]]]]]]]]"}.items():
        yield f"{name}, all that fit", filled(lambda _, item=item: item, room // (len(item) + 1))  # type: ignore[misc]
        marks = 1 + sum(item.count(mark) for mark in "[{")
        yield f"{name}, all that are parsed", filled(lambda _, item=item: item, LIMIT_VALUES // marks)  # type: ignore[misc]
    yield "numbers of 400 digits", filled(lambda _: "9" * 400, room // 401)
    keys = ",".join(f'"{at:x}":{at}' for at in range(LIMIT_VALUES))
    yield "an object of many keys", f"{before}{{{keys}}}{after}".encode()
    yield "escapes", f'{before}"{(chr(92) + "u4e00") * (room // 6 - 2)}"{after}'.encode()
    field = TEXTS.get(path, "text")
    yield f"{field} of 1.9 MB", json.dumps({**ROUTES[path], field: "happy, " * 270_000}).encode()
    yield "names", json.dumps({**ROUTES[path], "voice": "alloy," * 40_000, "ref_audio": "belinda," * 40_000}).encode()


async def post(port: int, path: str, content: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1])


async def longest_ms(port: int, done: asyncio.Event) -> float:
    """Return the longest response time of `/health` until then."""
    longest_s = 0.0
    while not done.is_set():
        began_s = time.perf_counter()
        async with request(port, "/health") as reader:
            await reader.read()
        longest_s = max(longest_s, time.perf_counter() - began_s)
        await asyncio.sleep(0.001)
    return longest_s * 1000


async def stall_ms(port: int, path: str, content: bytes, rounds: int) -> tuple[float, int]:
    done = asyncio.Event()
    watching = asyncio.create_task(longest_ms(port, done))
    status = 0
    for _ in range(rounds):
        status = await post(port, path, content)
    done.set()
    return await watching, status


async def measure(port: int, rounds: int) -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(2, done.set)
    floor_ms = await longest_ms(port, done)
    rows = [["nothing else", "", "", f"{floor_ms:.0f}", ""]]
    worst_ms = 0.0
    for path in ROUTES:
        assert await status_of(port, "/health") == 200
        for name, content in bodies(path):
            assert len(content) <= LIMIT_BYTES, (path, name)
            longest, status = await stall_ms(port, path, content, rounds)
            worst_ms = max(worst_ms, longest)
            rows.append([path, name, str(status), f"{longest:.0f}", f"{longest / floor_ms:.1f}"])
    rows.append(["all", "longest", "", f"{worst_ms:.0f}", f"{worst_ms / floor_ms:.1f}"])
    table(["route", "body", "status", "longest /health, ms", "x floor"], rows)
    print(f"bar: no stall above {BAR_MS:.0f} ms; {'met' if worst_ms <= BAR_MS else 'NOT met'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with running_server(ENGINE="espeak", DIALOGUE="true") as server:
        asyncio.run(measure(server.port, rounds))


if __name__ == "__main__":
    main()
