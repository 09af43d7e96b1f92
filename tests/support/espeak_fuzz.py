"""Texts that break speech synthesisers, and a run of any length that speaks them.

Usage: python -m tests.support.espeak_fuzz [--seconds N] [--seed N]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import replace
from random import Random

from streaming_server.engines.espeak.engine import utterances
from streaming_server.engines.espeak.process import EspeakProcess
from streaming_server.engines.espeak.voices import PRESETS
from streaming_server.errors import EngineFailed

_ATOMS = (
    *("a.", "A.", "z", "s'", "s", "-", "a-", "e.g.", "Dr.", "'ll", "n't", "ing", "un", "ness", "IV", "MM", "able-"),
    *("1", "9", "000", "1,", "1.", "1e9", "0x", "%", "$", "½", "²", "٣", "１", "\t", "\n", "\r", "\x01", "\x1b", "\0"),
    *("é", "e\u0301", "\u0301", "\u0300\u0327", "ﬁ", "ß", "İ", "ａ", "𝐀", "𐍈", "\ufffd", "\u202e", "\xad", "\u2028"),
    *("好", "好.", "〇", "億", "あ", "い.", "゙", "ー", "가", "가.", "ᄀ", "ᆨ", "й", "й.", "ї", "ω", "ώ.", "ع", "ع.", "ש"),
    *(
        "ש.",
        "ह",
        "हि",
        "ก",
        "ก็",
        "ㄅ",
        "🎉",
        "👨‍👩‍👧",
        "\u200d",
        "\u200b",
        "\ufe0f",
        "<a>",
        "&#65;",
        "[[",
        "]]",
        "_",
        "@",
    ),
    *("*", "/", "\\", "’", '"', "(", ")", "…", "!", "?", ".", "..", ",", ";", ":", "，", "。", "http://", "www."),
)
_LENGTHS = (1, 20, 60, 100, 200, 400, 800, 1500)


def odd_text(rng: Random, max_length: int = _LENGTHS[-1]) -> str:
    """Up to six fragments of the scripts, marks and symbols of Unicode, repeated or shuffled to a length."""
    atoms = rng.choices(_ATOMS, k=rng.choice((1, 1, 1, 2, 2, 3, 4, 6)))
    length = min(rng.choice(_LENGTHS), max_length)
    repeated = atoms * length if rng.random() < 0.7 else rng.choices(atoms, k=length)
    text = "".join(repeated)[:length]
    return text[: length // 2] + " " + text[length // 2 :] if rng.random() < 0.3 else text


async def speak_odd_text(process: EspeakProcess, text: str, rng: Random) -> None:
    """In any of the voices, at espeak-ng's highest rate.

    Raises:
        EngineFailed: espeak-ng crashed.
    """
    timbre = replace(rng.choice(PRESETS).timbre, rate_wpm=450)
    async for _ in process.speak(utterances(text, timbre)):
        pass


async def _run(seconds: float, seed: int) -> None:
    process = EspeakProcess()
    ends_s = time.monotonic() + seconds
    texts = crashes = 0
    while time.monotonic() < ends_s:
        rng = Random(f"{seed}/{texts}")
        text = odd_text(rng) if texts % 50 else odd_text(rng) * 20
        texts += 1
        try:
            await speak_odd_text(process, text, rng)
        except EngineFailed as error:
            crashes += 1
            print(f"text {texts - 1}: {error}: {text[:60]!r} ({len(text)} characters)", flush=True)
    print(f"texts: {texts}, crashes (each contained): {crashes}")
    await process.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    asyncio.run(_run(arguments.seconds, arguments.seed))


if __name__ == "__main__":
    main()
