"""Maps the words of phonemes to the words of their sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from streaming_server.text import word_spans


def phoneme_words(phonemes: str) -> list[tuple[int, int]]:
    """Return start and end of each word of phonemes, without punctuation."""
    found = []
    at = 0
    for word in phonemes.split(" "):
        spoken = [place for place, phoneme in enumerate(word) if phoneme.isalpha()]
        if spoken:
            found.append((at + spoken[0], at + spoken[-1] + 1))
        at += len(word) + 1
    return found


def spans_of_words(sentence: str, count: int, convert: Callable[[str], str]) -> list[tuple[int, int]]:
    """Return the span in the sentence of each of ``count`` words of its phonemes.

    A number or an abbreviation becomes several words, which share its span. If the conversion of single words does not
    give the same count, the words of the phonemes are distributed over those of the sentence.

    Args:
        sentence: the converted sentence.
        count: number of words of its phonemes.
        convert: converts text to phonemes.
    """
    spans = word_spans(sentence)
    words = [span for span in spans if any(map(str.isalnum, sentence[slice(*span)]))]
    if len(words) == count or not words:
        return words[:count]
    # Symbols such as "&" and "≤" are read too.
    counts = [len(phoneme_words(convert(sentence[slice(*span)]))) for span in spans]
    if sum(counts) != count:
        counts = _spread(counts, count)
    return [span for span, repeated in zip(spans, counts, strict=True) for _ in range(repeated)]


def begun_once(spans: Sequence[tuple[int, int]], at: int) -> list[tuple[int | None, int]]:
    """Return begin and end of each span, moved by ``at``; the begin of the first one only where several are equal.

    The words of a number may be in several pieces of audio, of which only the first has its beginning.
    """
    return [
        (None if span == before else at + span[0], at + span[1])
        for before, span in zip([None, *spans], spans, strict=False)
    ]


def _spread(counts: Sequence[int], total: int) -> list[int]:
    """Scale counts so that they sum up to ``total``."""
    sum_of_counts = sum(counts) or 1
    ends = [round(end * total / sum_of_counts) for end in accumulate(counts)]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
