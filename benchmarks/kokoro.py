"""How fast and how clear is Kokoro here? Beside the package kokoro-onnx, on the same weights and the same phonemes.

For each sentence, in turn and in one process: the engine's stream (its first audio, and the whole) and the package's
own call; then the word error rate of both over the sentences. The int8 weights and the voices are those of the tests.
Needs ``pip install kokoro-onnx``, which the project does not use, unless with ``--only-engine``.

Usage: python -m benchmarks.kokoro [--sentences N] [--voice NAME] [--only-speed] [--only-engine]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.common import percentile, table
from benchmarks.default_voice import SENTENCES
from streaming_server.domain import FloatSamples, SpeechRequest, Voice
from streaming_server.engines.kokoro.engine import KokoroEngine
from streaming_server.engines.kokoro.folder import find_models, find_voices
from streaming_server.engines.onnx.english import EnglishPhonemes
from tests.support.asr import word_error_rate
from tests.support.kokoro import make_folder

RATE_HZ = 24000
LONG_S = 3.0


@dataclass(frozen=True)
class Spoken:
    """One sentence by one of the two."""

    samples: FloatSamples
    first_s: float
    whole_s: float

    @property
    def audio_s(self) -> float:
        return self.samples.size / RATE_HZ


async def by_engine(engine: KokoroEngine, text: str, voice: str) -> Spoken:
    began_s = time.perf_counter()
    first_s = 0.0
    pieces = []
    async with aclosing(engine.stream(SpeechRequest(text, Voice(voice, is_preset=True)))) as chunks:
        async for chunk in chunks:
            first_s = first_s or time.perf_counter() - began_s
            pieces.append(chunk.samples)
    return Spoken(np.concatenate(pieces), first_s, time.perf_counter() - began_s)


def by_package(package: Any, english: EnglishPhonemes, text: str, voice: str) -> Spoken:
    began_s = time.perf_counter()
    samples, _ = package.create(english(text), voice, is_phonemes=True)
    whole_s = time.perf_counter() - began_s
    return Spoken(np.asarray(samples, np.float32), whole_s, whole_s)


def report(by_name: Mapping[str, Sequence[Spoken]], texts: Sequence[str], *, only_speed: bool) -> None:
    rows = []
    for name, spoken in by_name.items():
        compute_s, audio_s = sum(one.whole_s for one in spoken), sum(one.audio_s for one in spoken)
        long = [one.first_s / one.whole_s for one in spoken if one.audio_s > LONG_S]
        said = [(one.samples, text) for one, text in zip(spoken, texts, strict=True)]
        errors = "-" if only_speed else f"{word_error_rate(said, RATE_HZ):.1%}"
        first_ms = [one.first_s * 1000 for one in spoken]
        rows.append(
            [
                name,
                f"{compute_s:.1f}",
                f"{audio_s:.1f}",
                f"{compute_s / audio_s:.3f}",
                f"{percentile(first_ms, 50):.0f}",
                f"{percentile(long, 50):.2f} ({len(long)})" if long else "-",
                errors,
            ]
        )
    head = [
        "",
        "compute, s",
        "speech, s",
        "real-time factor",
        "first audio, ms p50",
        f"of the whole, over {LONG_S:.0f} s",
        "WER",
    ]
    table(head, rows)


def package_over(folder: Path) -> Any:
    """kokoro-onnx on the folder's model and voices, which it wants in one file."""
    from kokoro_onnx import Kokoro

    archive = folder / "voices-v1.0.bin"
    rows = {name: np.fromfile(path, np.float32).reshape(510, 1, 256) for name, path in find_voices(folder).items()}
    with archive.open("wb") as content:
        np.savez(content, **rows)  # type: ignore[arg-type]
    return Kokoro(str(find_models(folder)["int8"]), str(archive))


async def measure(
    folder: Path, texts: Sequence[str], voice: str, *, only_engine: bool
) -> Mapping[str, Sequence[Spoken]]:
    package, english = None if only_engine else package_over(folder), EnglishPhonemes()
    engine = KokoroEngine(model_dir=folder)
    await engine.warm()
    names = ["this server's engine"] if only_engine else ["this server's engine", "kokoro-onnx"]
    found: dict[str, list[Spoken]] = {name: [] for name in names}
    for text in (texts[0], *texts):
        spoken = [await by_engine(engine, text, voice)]
        spoken += [by_package(package, english, text, voice)] if package else []
        for one, several in zip(spoken, found.values(), strict=True):
            several.append(one)
    await engine.aclose()
    return {name: several[1:] for name, several in found.items()}  # without the first, which warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=len(SENTENCES))
    parser.add_argument("--voice", default="af_heart")
    parser.add_argument("--only-speed", action="store_true")
    parser.add_argument("--only-engine", action="store_true")
    options = parser.parse_args()
    if not options.only_engine and find_spec("kokoro_onnx") is None:
        parser.error("kokoro-onnx is not installed: run pip install kokoro-onnx, or pass --only-engine")
    with TemporaryDirectory() as folder:
        made = make_folder(Path(folder) / "kokoro")
        texts = SENTENCES[: options.sentences]
        spoken = asyncio.run(measure(made, texts, options.voice, only_engine=options.only_engine))
    report(spoken, texts, only_speed=options.only_speed)


if __name__ == "__main__":
    main()
