"""Word error rate, first audio and loudness of the default voice, over HTTP in Ogg Opus.

The floor of the first audio is hibari's own call for the same sentence, alternating with the requests. If the package
speechmos is installed, DNSMOS P.808 is printed too.

Usage: python -m benchmarks.default_voice [--rounds N] [--sentences N] [--all-voices | --voices NAME...]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

import httpx
import numpy as np
from hibari import Hibari

from benchmarks.common import first_audio_ms, percentile, running_server, table
from streaming_server.audio.pcm import Resampler, to_float32, to_int16
from streaming_server.domain import FloatSamples
from streaming_server.engines.hibari.joins import active_rms
from streaming_server.engines.hibari.voices import PRESETS
from tests.support.asr import word_error_rate
from tests.support.decoders import ffmpeg_decode

RATE_HZ = 24000
QUALITY_HZ = 16000
QUALITY_SENTENCES = 8
SENTENCES = (
    "Dr. Smith will see you at 7:30 on Monday, March 4th.",
    "The invoice comes to $1,250, due on the 15th of June 2025.",
    "Mrs. Taylor lives at 42 Baker Street in London.",
    "Our flight leaves at 6:45 and lands in Chicago at 9:20.",
    "The package weighs 3.5 pounds and is 12 inches long.",
    "Please call J. K. Rowling before noon.",
    "Prof. Brown teaches at the university on Fridays.",
    "He was born on July 20th, 1969, in the state of Ohio.",
    "The temperature fell to 5 degrees during the night.",
    "Turn left after 300 feet, then take the second exit.",
    "We sold 48 tickets for the concert on Saturday.",
    "Mr. Johnson paid $19.99 for the book.",
    "The meeting has moved from 2:15 to 4:00 in the afternoon.",
    "Chapter 7 begins on page 112.",
    "About 60% of the students passed the exam.",
    "Elizabeth and Robert were married in Boston in 1998.",
    "The train to New York departs from platform 9.",
    "She ran the marathon in 3 hours and 42 minutes.",
    "Please read the manual before you turn on the machine.",
    "Their office is on the 21st floor, next to the elevator.",
    "It rained for 11 days in a row last November.",
    "The recipe calls for 2 cups of flour and 3 eggs.",
    "Captain Miller commanded a crew of 250 sailors.",
    "The museum opens at 10 o'clock, except on Tuesdays.",
    "My brother bought a used car for $8,500.",
    "The river is 120 miles long and very deep.",
    "Your order number is 4715, and it ships tomorrow.",
    "Sarah invited 30 guests to her birthday party.",
    "The bank closes at 5 p.m. every weekday.",
    "Queen Elizabeth visited Washington in the spring of 1957.",
)
LONG = "The old man with the long grey coat walked slowly down the road, and nobody asked him where he was going."
PARAGRAPH = f"{LONG} It was late in the evening. The shops had closed, and the lamps were being lit one by one."
PATH = "/synthesize_stream_opus"


async def first_audio(port: int, rounds: int) -> list[tuple[str, ...]]:
    package = Hibari()
    package(LONG)
    times: dict[str, list[float]] = {"own call": [], "sentence": [], "paragraph": []}
    for number in range(rounds + 1):
        began_s = time.perf_counter()
        package(LONG)
        own_ms = (time.perf_counter() - began_s) * 1000
        sentence_ms = await first_audio_ms(port, PATH, LONG)
        await asyncio.sleep(0.1)
        paragraph_ms = await first_audio_ms(port, PATH, PARAGRAPH)
        await asyncio.sleep(0.1)
        if number:
            for found, value in zip(times.values(), (own_ms, sentence_ms, paragraph_ms), strict=True):
                found.append(value)
    own_p50 = percentile(times["own call"], 50)
    return [
        (f"first audio, {name}", f"{percentile(found, 50):.1f}", f"{percentile(found, 50) / own_p50:.2f}")
        for name, found in times.items()
    ]


def spoken(port: int, text: str, voice: str, speed: float) -> FloatSamples:
    body = {"model": "tts-1", "input": text, "voice": voice, "speed": speed, "response_format": "opus"}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/audio/speech", json=body, timeout=60).raise_for_status()
    return to_float32(ffmpeg_decode(answer.content, RATE_HZ))


def quality(recordings: Sequence[FloatSamples]) -> str:
    try:
        from speechmos import dnsmos
    except ImportError:
        return "-"
    scores = []
    for samples in recordings:
        resampler = Resampler(RATE_HZ, QUALITY_HZ)
        resampled = to_float32(np.concatenate([resampler.push(to_int16(samples)), resampler.finish()]))
        scores.append(dnsmos.run(resampled, sr=QUALITY_HZ)["p808_mos"])
    return f"{np.mean(scores):.2f}"


def measured(port: int, voice: str, speed: float, sentences: Sequence[str]) -> tuple[str, ...]:
    recordings = [spoken(port, sentence, voice, speed) for sentence in sentences]
    errors = word_error_rate(zip(recordings, sentences, strict=True), RATE_HZ)
    level_db = 20 * np.log10(active_rms(np.concatenate(recordings)))
    row = voice, str(speed), f"{errors:.1%}", f"{level_db:.1f}", quality(recordings[:QUALITY_SENTENCES])
    print(*row, file=sys.stderr)  # a run over all voices takes minutes
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sentences", type=int, default=len(SENTENCES))
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--all-voices", action="store_true")
    chosen.add_argument("--voices", nargs="+", metavar="NAME", help="only the quality of these, at speed 1.0")
    options = parser.parse_args()
    sentences = SENTENCES[: options.sentences]
    with running_server(ENGINE="hibari") as server:
        if options.voices:
            asked = [(name, 1.0) for name in options.voices]
        else:
            times = asyncio.run(first_audio(server.port, options.rounds))
            table(("milliseconds", "p50", "of hibari's own call"), times)
            asked = [("alloy", speed) for speed in (1.0, 0.8, 1.5)]
            asked += [(preset.name, 1.0) for preset in PRESETS[1:]] if options.all_voices else []
        rows = [measured(server.port, *one, sentences) for one in asked]
        table(("voice", "speed", "WER", "level, dBFS", "DNSMOS P.808"), rows)


if __name__ == "__main__":
    main()
