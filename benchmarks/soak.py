"""Soak test: memory, descriptors, threads and logged errors of a server under load for minutes.

Concurrent clients of every dialect synthesise, disconnect, upload, send invalid requests and read the status. Every ten
seconds a line shows the process; at the end the last third of the samples is compared with the second fifth.

Usage: scripts/soak [SECONDS (600)]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.common import ROOT, SENTENCE, table

CLIENTS = 6
RECORDING = ROOT / "reference_audios" / "voice_02.wav"
JSON_CALLS: dict[str, dict[str, object]] = {
    "/synthesize": {"text": SENTENCE},
    "/synthesize_stream": {"text": SENTENCE},
    "/synthesize_stream_opus": {"text": SENTENCE},
    "/v1/audio/speech": {"model": "tts-1", "input": SENTENCE, "stream_format": "sse"},
    "/tts": {"text": SENTENCE, "character": "nova"},
    "/tts_url": {"text": SENTENCE, "spk_audio_path": "voice_03.wav", "emo_control_method": 3, "emo_text": "happy"},
    "/generate": {"text": "[SPEAKER0] Hello. [SPEAKER1] Hello to you."},
    "/generate-stream": {"text": SENTENCE},
    "/api/v1/tts": {"text": "Short.", "prompt_audio_id": "voice_01"},
    "/api/v1/tts/sync": {"text": "Short.", "prompt_audio_id": "voice_01"},
    "/v1/workflows": {"workflow_config": {"workflow_chain": ["indextts.health_check"]}},
}
REFUSED: dict[str, dict[str, object]] = {
    "/synthesize": {"text": "a", "voice": "alloy"},
    "/v1/audio/speech": {"model": "tts-1", "input": "a", "voice": "nobody"},
    "/tts_url": {"text": "a", "audio_paths": [1] * 20_000},
    "/generate": {"text": "a" * 500_000},
}
STATUS = ("/health", "/opus_queue_status", "/metrics", "/api/v1/tasks", "/voices", "/api/v1/monitoring/statistics")


@dataclass(frozen=True)
class Sample:
    at_s: float
    memory_mib: float
    descriptors: int
    threads: int


WATCHED: dict[str, tuple[Callable[[Sample], float], float]] = {
    "memory, MiB": (lambda one: one.memory_mib, 48),
    "descriptors": (lambda one: one.descriptors, 0),
    "threads": (lambda one: one.threads, 0),
}
"""How each figure is read, and its maximum growth."""


def sample(process: psutil.Process, began_s: float) -> Sample:
    """Return a sample of the server and its child processes."""
    found = []
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # the engine's process was being replaced
            found.append((one.memory_info().rss / 2**20, one.num_fds(), one.num_threads()))
    memory, descriptors, threads = zip(*found, strict=True)
    return Sample(time.monotonic() - began_s, sum(memory), sum(descriptors), sum(threads))


async def client(base_url: str, until_s: float, answers: Counter[str]) -> None:
    async with httpx.AsyncClient(base_url=base_url, timeout=120) as http:
        while time.monotonic() < until_s:
            try:
                await one_call(http, answers)
            except httpx.HTTPError as error:
                answers[f"{type(error).__name__}"] += 1


async def one_call(http: httpx.AsyncClient, answers: Counter[str]) -> None:
    chance = random.random()
    if chance < 0.4:
        path, body = random.choice(list(JSON_CALLS.items()))
        response = await http.post(path, json=body)
    elif chance < 0.6:
        path = random.choice(("/synthesize_stream_opus", "/synthesize_stream"))
        async with http.stream("POST", path, json={"text": SENTENCE * 20}) as response:
            async for _ in response.aiter_raw():
                break
        answers["left in the middle"] += 1
        return
    elif chance < 0.7:
        content = RECORDING.read_bytes() + os.urandom(8)
        response = await http.post("/api/v1/upload/audio", files={"file": ("voice.wav", content)})
    elif chance < 0.8:
        path, body = random.choice(list(REFUSED.items()))
        response = await http.post(path, json=body)
    else:
        response = await http.get(random.choice(STATUS))
    answers[str(response.status_code)] += 1


async def soak(process: psutil.Process, base_url: str, seconds: float) -> tuple[list[Sample], Counter[str]]:
    answers: Counter[str] = Counter()
    began_s = time.monotonic()
    clients = [asyncio.create_task(client(base_url, began_s + seconds, answers)) for _ in range(CLIENTS)]
    samples = [sample(process, began_s)]
    while not all(one.done() for one in clients):
        await asyncio.wait(clients, timeout=min(10, seconds / 10), return_when=asyncio.ALL_COMPLETED)
        samples.append(sample(process, began_s))
        last = samples[-1]
        counts = f"{last.descriptors:4} descriptors  {last.threads:4} threads"
        print(f"{last.at_s:6.0f} s  {last.memory_mib:7.1f} MiB  {counts}", flush=True)
    await asyncio.gather(*clients)
    return samples, answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=600.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        environment = os.environ | {"DATA_DIR": folder, "UPLOAD_KEEP_S": "20", "AUDIO_KEEP_S": "20"}
        command = [sys.executable, "-m", "streaming_server.cli", "serve", "--host", "127.0.0.1", "--port", "0"]
        with log.open("wb") as sink:
            process = subprocess.Popen([*command, "--engine", "espeak"], cwd=ROOT, env=environment, stderr=sink)
        try:
            while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())):
                if process.poll() is not None:
                    raise RuntimeError(log.read_text())
                time.sleep(0.05)
            samples, answers = asyncio.run(soak(psutil.Process(process.pid), found[1], seconds))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(40)
        records = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        unknown = [line for line in log.read_text().splitlines() if not line.startswith("{")]
    errors = [record for record in records if record.get("level") in {"ERROR", "CRITICAL", "error", "critical"}]
    early = samples[len(samples) // 5 : 2 * len(samples) // 5 + 1]
    late = samples[-(len(samples) // 3) :]
    rows, grown = [], {"errors": bool(errors or unknown or answers["500"])}
    for name, (value, allowed) in WATCHED.items():
        before, after = [value(one) for one in early], [value(one) for one in late]
        rows.append([name, f"{min(before):.0f}-{max(before):.0f}", f"{min(after):.0f}-{max(after):.0f}"])
        # The minimum of the late samples against the maximum of the early ones, because load makes them vary.
        grown[name] = min(after) - max(before) > allowed
    table(["", "early", "late"], rows)
    print("answers:", ", ".join(f"{count} x {answer}" for answer, count in sorted(answers.items())))
    print(f"log: {len(records)} records, {len(errors)} errors, {len(unknown)} lines that are no record")
    for line in [*(json.dumps(error) for error in errors[:5]), *unknown[:5]]:
        print("  ", line[:500])
    print("; ".join(f"{name}: {'NOT ok' if is_bad else 'ok'}" for name, is_bad in grown.items()))
    return int(any(grown.values()))


if __name__ == "__main__":
    sys.exit(main())
