"""Subtitles of a synthesis: SubRip and WebVTT."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from streaming_server.segmentation import ends_line, is_sentence, sentence_spans
from streaming_server.speech.timeline import Passage

MAX_CUE_CHARACTERS = 84
"""Two lines of 42."""


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown at once."""

    text: str
    start_s: float
    end_s: float


def cues(passages: Iterable[Passage]) -> Iterator[Cue]:
    """Yield the sentences, cut between words where they are long.

    A sentence of one word, such as the number of a list's item, stands with the next one of its line.
    """
    for passage in passages:
        words = passage.words()
        ends = [*_ends(passage.text)]
        first = 0
        for number, (word, following) in enumerate(zip(words, [*words[1:], None], strict=False)):
            begin, end = words[first].begin, word.begin + len(word.text)
            is_full = following is None or following.begin + len(following.text) - begin > MAX_CUE_CHARACTERS
            if is_full or (following and bisect(ends, word.begin) < bisect(ends, following.begin)):
                yield Cue(" ".join(passage.text[begin:end].split()), words[first].start_s, word.end_s)
                first = number + 1


def _ends(text: str) -> Iterator[int]:
    begin = 0
    for _, end in sentence_spans(text):
        sentence = text[begin:end].rstrip()
        if is_sentence(sentence) or ends_line(text, begin + len(sentence)):
            yield end
            begin = end


def srt(passages: Iterable[Passage]) -> str:
    """SubRip."""
    return "\n".join(
        f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues(passages), 1)
    )


def vtt(passages: Iterable[Passage]) -> str:
    """WebVTT."""
    shown = (
        f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{_escaped(cue.text)}\n" for cue in cues(passages)
    )
    return "\n".join(["WEBVTT\n", *shown])


FORMATS: Mapping[str, tuple[str, Callable[[Iterable[Passage]], str]]] = MappingProxyType(
    {"srt": ("application/x-subrip", srt), "vtt": ("text/vtt", vtt)}
)
"""By name, the media type and what writes it."""


def _clock(time_s: float, mark: str) -> str:
    milliseconds = round(time_s * 1000)
    minutes, seconds = divmod(milliseconds // 1000, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}{mark}{milliseconds % 1000:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
