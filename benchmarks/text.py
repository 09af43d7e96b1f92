"""Growth of text processing: the CPU time of every front end for 5 000 and 20 000 characters of its worst inputs.

``python -m benchmarks.text [--quick]``. The ratio is about 4 for linear and about 16 for quadratic time. The models are
tiny; their vocabularies have the real size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import table
from streaming_server.engines.emotion_words import vector_from_words
from streaming_server.engines.espeak.languages import runs
from streaming_server.engines.indextts.frontend import Frontend
from streaming_server.engines.indextts2.reading import LanguageReader
from streaming_server.segmentation import is_sentence, sentences
from streaming_server.text import cut_by_words, estimated_duration_s, forbidden_character
from tests.engines.indextts import tiny
from tests.engines.indextts2 import tiny as tiny2

SHORT, LONG = 5_000, 20_000
LINEAR = 8.0
"""Maximum ratio that counts as linear: 4, doubled for noise and logarithmic factors."""
VOCABULARY = "multilingual_zh_ja_yue_char_del.tiktoken"

UNITS = {
    "dots": ".",
    "letters": "a",
    "digits": "1",
    "blanks": " ",
    "line breaks": "a\n",
    "abbreviations": "a.",
    "numbers with units": "1.2年",
    "amounts": "$1,",
    "signs": "# ",
    "brackets": "[",
    "quotes": "‹",
    "quoted letters": "a‹",
    "quoted capitals": "A‹",
    "pinyin": "xuan4 ",
    "marks": "<a|B> ",
    "unfinished marks": "<a|",
    "special tokens": "<|SPECIAL_TOKEN_1|>",
    "speakers": "[SPEAKER0] a ",
    "full stops": "。",
    "Han": "你",
    "kana": "あ",
    "two scripts": "你a",
    "combining marks": "é̂",
    "emoji": "😀",
    "negations": "not  ",
    "Chinese negations": "不要",
}
"""The repeated parts of the texts, which end with a letter: a run of marks at the end is no worst case."""
QUICK = ("dots", "letters", "numbers with units", "marks")


def front_ends(folder: Path) -> Iterator[tuple[str, Callable[[str], object]]]:
    yield "checks", lambda text: (forbidden_character(text), estimated_duration_s(text), vector_from_words(text))
    yield "sentences", lambda text: (list(sentences(text)), is_sentence(text))
    yield "cut_by_words", lambda text: cut_by_words(text, 100)
    yield "espeak", lambda text: list(runs(text))
    frontend = Frontend(tiny.make_checkpoint(folder / "1.5") / "bpe.model")
    yield "indextts 1.x, 2.0", lambda text: frontend.segments(text, 60)
    reader = LanguageReader(tiny2.make_checkpoint(folder / "2.5", "2.5") / VOCABULARY)
    yield "indextts 2.5", lambda text: reader.segments(text, 60)
    tokenizer = higgs_tokenizer(folder / "higgs")
    yield "higgs", lambda text: tokenizer(text, add_special_tokens=False)


def higgs_tokenizer(folder: Path) -> Callable[..., object]:
    from transformers import AutoTokenizer

    from tests.engines.higgs import tiny as tiny_higgs

    model, _ = tiny_higgs.make_checkpoint(folder)
    loaded: Callable[..., object] = AutoTokenizer.from_pretrained(model)
    return loaded


def seconds(process: Callable[[str], object], text: str) -> float:
    """CPU time of the fastest of three calls, so that other processes do not count."""

    def once() -> float:
        began_s = time.process_time()
        process(text)
        return time.process_time() - began_s

    return min(once() for _ in range(3))


def measure(process: Callable[[str], object], units: Mapping[str, str]) -> Iterator[tuple[str, float, float]]:
    for name, unit in units.items():
        short, long = ((unit * size)[: size - 1] + "a" for size in (SHORT, LONG))
        yield name, seconds(process, short), seconds(process, long)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four inputs instead of all")
    units = {name: UNITS[name] for name in QUICK} if parser.parse_args().quick else UNITS
    rows, worst = [], 0.0
    with TemporaryDirectory() as folder:
        for front_end, process in front_ends(Path(folder)):
            for text in ("你好 3.", "hi 3."):
                process(text)  # triggers lazy loading
            for name, short_s, long_s in measure(process, units):
                ratio = long_s / max(short_s, 0.01)  # times below 10 ms are mostly noise
                worst = max(worst, ratio)
                rows.append((front_end, name, f"{short_s:.3f}", f"{long_s:.3f}", f"{ratio:.1f}"))
    table(("front end", "input", f"{SHORT} characters, s", f"{LONG} characters, s", "ratio"), rows)
    print(f"largest ratio: {worst:.1f} ({'linear' if worst <= LINEAR else 'not linear'})")


if __name__ == "__main__":
    main()
