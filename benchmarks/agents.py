"""Text that arrives word by word, as a voice agent sends it: first audio, word error rate, interruption, word times.

Sessions are ElevenLabs' ``stream-input`` and ``multi-stream-input``; a word is sent every 50 ms.

Usage: python -m benchmarks.agents [--rounds N] [--texts N] [--only first|errors|interruption|times]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import httpx
import numpy as np
from websockets.asyncio.client import connect

from benchmarks.common import get_json, percentile, running_server, table
from benchmarks.default_voice import SENTENCES
from streaming_server.audio.pcm import to_float32
from streaming_server.domain import FloatSamples
from streaming_server.text import word_spans
from tests.support.asr import timed_words, word_error_rate, words

RATE_HZ = 16000
_LOUD, _SILENCE_S = 0.02, 0.06
"""Share of the highest level from which 5 ms count as sound, and the shortest silence between two sounds."""
_HISS = 0.25
"""Share of the highest level of high frequencies from which 5 ms count as a hiss."""
WORD_S = 0.05
VOICE = "alloy"
FIRST = "Every ship in the harbour waved back at last."
TURN = f"{FIRST} Then the fog came down over the bay again, and nobody could see the other shore. It was quiet."
TEXTS = (
    "When the fog finally lifted over the bay, every ship waved back. Then it was quiet again for a while.",
    "The old man with the long grey coat walked slowly down the road. Nobody asked him where he was going.",
    "It was late in the evening. The shops had closed, and the lamps were being lit one by one.",
    "Please read the manual before you turn on the machine. The river is very long and very deep.",
    "My brother bought a used car from a friend. He drives it to work every morning, even in the rain.",
    "She opened the window and listened. Somewhere behind the hills a train was leaving the station.",
)
HISSING = (
    "We see more seals near my sunny lawn.",
    "My son may sell my new soap in the market now.",
    "You said no sailor saw me sing low songs.",
)
"""Words that begin with an s, behind sounds without hiss: where they begin can be seen in the sound itself."""


@dataclass(frozen=True)
class Turn:
    first_ms: float
    """From the last word of the first sentence to the first audio; negative where the audio is earlier."""
    is_early: bool
    """The audio begins before the text ends."""
    samples: FloatSamples


async def speak(port: int, text: str, interval_s: float, first: str = "") -> Turn:
    """Send a text word by word; ``first`` is its first sentence."""
    url = f"ws://127.0.0.1:{port}/v1/text-to-speech/{VOICE}/stream-input?output_format=pcm_{RATE_HZ}"
    last_word, sent_s, ended_s, first_s = len(first.split()), 0.0, 0.0, 0.0
    audio = bytearray()
    async with connect(url, max_size=None) as socket:
        await socket.send(json.dumps({"text": " "}))

        async def write() -> None:
            nonlocal sent_s, ended_s
            for number, word in enumerate(text.split(), 1):
                await socket.send(json.dumps({"text": word + " "}))
                if number == last_word:
                    sent_s = time.perf_counter()
                await asyncio.sleep(interval_s)
            ended_s = time.perf_counter()
            await socket.send(json.dumps({"text": ""}))

        writing = asyncio.create_task(write())
        async for message in socket:
            piece = base64.b64decode(json.loads(message)["audio"] or "")
            if piece and not audio:
                first_s = time.perf_counter()
            audio += piece
        await writing
    return Turn((first_s - sent_s) * 1000, first_s < ended_s, to_float32(np.frombuffer(audio, np.int16)))


async def first_audio(port: int, rounds: int) -> list[tuple[str, ...]]:
    rows = []
    await speak(port, TURN, 0.0)
    for sessions in (1, 4, 16):
        turns: list[Turn] = []
        while len(turns) < max(rounds, sessions):
            # Agents do not begin at the same moment.
            async def late(number: int) -> Turn:
                await asyncio.sleep(number * 0.37 % 1)
                return await speak(port, TURN, WORD_S, FIRST)

            turns += await asyncio.gather(*(late(number) for number in range(sessions)))
        times = [turn.first_ms for turn in turns]
        early = sum(turn.is_early for turn in turns)
        shown = [f"{percentile(times, percent):.0f}" for percent in (50, 95)]
        rows.append((str(sessions), *shown, f"{early} of {len(turns)}"))
    return rows


async def errors(port: int, count: int) -> list[tuple[str, ...]]:
    texts = [" ".join(SENTENCES[place : place + 2]) for place in range(0, 2 * count, 2)]
    by_word = [((await speak(port, text, 0.0)).samples, text) for text in texts]
    whole = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        for text in texts:
            path = f"/v1/text-to-speech/{VOICE}?output_format=pcm_{RATE_HZ}"
            answer = await client.post(path, json={"text": text})
            whole.append((to_float32(np.frombuffer(answer.content, np.int16)), text))
    return [
        (name, f"{100 * word_error_rate(recordings, RATE_HZ):.1f} %")
        for name, recordings in (("word by word", by_word), ("whole text", whole))
    ]


async def interruption(port: int, rounds: int) -> list[tuple[str, ...]]:
    url = f"ws://127.0.0.1:{port}/v1/text-to-speech/{VOICE}/multi-stream-input?output_format=pcm_{RATE_HZ}"
    long = " ".join(SENTENCES)
    ended_ms, free_ms, late = [], [], 0
    async with connect(url, max_size=None) as socket:
        for number in range(rounds):
            context = str(number)
            await socket.send(json.dumps({"text": long, "context_id": context}))
            await socket.recv()
            began_s = time.perf_counter()
            await socket.send(json.dumps({"context_id": context, "close_context": True}))
            while not json.loads(await socket.recv()).get("isFinal"):
                pass
            ended_ms.append((time.perf_counter() - began_s) * 1000)
            while (await get_json(port, "/opus_queue_status"))["is_processing"]:
                await asyncio.sleep(0)
            free_ms.append((time.perf_counter() - began_s) * 1000)
            try:
                async with asyncio.timeout(0.2):
                    late += bool(json.loads(await socket.recv()))
            except TimeoutError:
                pass
    return [
        ("isFinal", *(f"{percentile(ended_ms, percent):.1f}" for percent in (50, 100))),
        ("slot seen to be free", *(f"{percentile(free_ms, percent):.1f}" for percent in (50, 100))),
        ("messages after isFinal", str(late), ""),
    ]


async def word_times(port: int, count: int) -> dict[str, list[float]]:
    """The error of each word's start, in milliseconds, by precision; also of equal shares in place of marks.

    The recogniser says when a word begins, whose own times are late in synthetic voices. Behind a silence the sound
    itself says so (``onsets``), and within a sentence where an s begins (``hisses``).
    """
    found: dict[str, list[float]] = {}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        for text in HISSING:
            lines, samples = await with_timestamps(client, text)
            for alignment in (line["alignment"] for line in lines if line["alignment"]):
                found.setdefault("hisses", []).extend(hiss_differences_ms(alignment, samples))
        for text in TEXTS[:count]:
            lines, samples = await with_timestamps(client, text)
            heard = timed_words(samples, RATE_HZ)
            spoken = {"engine": list[tuple[str, float]](), "segment": list[tuple[str, float]]()}
            for line in lines:
                if line["alignment"] and line["alignment_precision"] == "engine":
                    found.setdefault("onsets", []).extend(onset_differences_ms(line["alignment"], samples))
                if line["alignment"]:
                    for precision, starts_s in starts(line["alignment"]).items():
                        spoken[precision] += starts_s
            for precision, timed in spoken.items():
                found.setdefault(precision, []).extend(differences_ms(timed, heard))
    return found


async def with_timestamps(client: httpx.AsyncClient, text: str) -> tuple[list[dict[str, Any]], FloatSamples]:
    """The lines of a stream with timestamps, and its samples."""
    path = f"/v1/text-to-speech/{VOICE}/stream/with-timestamps?output_format=pcm_{RATE_HZ}"
    lines = [json.loads(line) for line in (await client.post(path, json={"text": text})).text.splitlines()]
    audio = b"".join(base64.b64decode(line["audio_base64"]) for line in lines)
    return lines, to_float32(np.frombuffer(audio, np.int16))


def hiss_differences_ms(alignment: dict[str, Any], samples: FloatSamples) -> list[float]:
    """For the words that begin with an s: from their stated start to the nearest beginning of a hiss."""
    text = "".join(alignment["characters"])
    step = RATE_HZ // 200
    high = np.diff(samples, 3)  # leaves little below 4 kHz
    level = np.sqrt(np.square(high[: high.size // step * step]).reshape(-1, step).mean(axis=1))
    begins_s = np.flatnonzero(np.diff((level > _HISS * level.max()).astype(int)) == 1) * step / RATE_HZ
    times_s = alignment["character_start_times_seconds"]
    return [
        float(np.abs(begins_s - times_s[begin]).min()) * 1000 for begin, _ in word_spans(text) if text[begin] == "s"
    ]


def onset_differences_ms(alignment: dict[str, Any], samples: FloatSamples) -> list[float]:
    """For the words behind silence, the first of each sentence too: from their stated start to that of the sound."""
    text = "".join(alignment["characters"])
    step = RATE_HZ // 200
    level = np.sqrt(np.square(samples[: samples.size // step * step]).reshape(-1, step).mean(axis=1))
    loud_s = np.flatnonzero(level > _LOUD * level.max()) * step / RATE_HZ
    begins_s = loud_s[np.flatnonzero(np.diff(loud_s, prepend=-1.0) > _SILENCE_S)]
    differences = []
    for begin, _ in word_spans(text):
        if not begin or text[:begin].rstrip()[-1:] in ".,;:!?":
            nearest_s = np.abs(begins_s - alignment["character_start_times_seconds"][begin]).min()
            differences.append(float(nearest_s) * 1000)
    return differences


def starts(alignment: dict[str, Any]) -> dict[str, list[tuple[str, float]]]:
    """The words of a sentence and when each begins: as stated, and by equal shares of the sentence."""
    text = "".join(alignment["characters"]).rstrip()
    times_s = alignment["character_start_times_seconds"]
    begin_s, end_s = times_s[0], alignment["character_end_times_seconds"][len(text) - 1]
    spans = [(begin, written) for begin, end in word_spans(text) for written in words(text[begin:end])[:1]]
    return {
        "engine": [(word, times_s[begin]) for begin, word in spans],
        "segment": [(word, begin_s + (end_s - begin_s) * begin / len(text)) for begin, word in spans],
    }


def differences_ms(spoken: Sequence[tuple[str, float]], heard: Sequence[tuple[str, float]]) -> list[float]:
    matcher = SequenceMatcher(None, [word for word, _ in spoken], [word for word, _ in heard], autojunk=False)
    return [
        abs(spoken[block.a + place][1] - heard[block.b + place][1]) * 1000
        for block in matcher.get_matching_blocks()
        for place in range(block.size)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--texts", type=int, default=10)
    parser.add_argument("--only", choices=["first", "errors", "interruption", "times"])
    options = parser.parse_args()

    def wants(part: str) -> bool:
        return options.only in {None, part}

    with running_server(ENGINE="hibari") as server:
        if wants("first"):
            head = ("sessions", "first audio p50, ms", "p95, ms", "before the text ends")
            table(head, asyncio.run(first_audio(server.port, options.rounds)))
        if wants("errors"):
            table(("text", "word error rate"), asyncio.run(errors(server.port, options.texts)))
        if wants("interruption"):
            table(("interrupted", "p50, ms", "max, ms"), asyncio.run(interruption(server.port, options.rounds)))
    if wants("times"):
        rows = []
        for engine in ("hibari", "espeak"):
            with running_server(ENGINE=engine) as server:
                for precision, values in asyncio.run(word_times(server.port, options.texts)).items():
                    shown = [f"{percentile(values, percent):.0f}" for percent in (50, 90)]
                    rows.append((engine, precision, str(len(values)), *shown))
        table(("engine", "precision", "words", "median error, ms", "p90, ms"), rows)


if __name__ == "__main__":
    main()
