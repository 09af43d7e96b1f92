"""Recognition of spoken English digits, given their number.

Require 80 % agreement in a test and at most 20 % for its controls (the audio reversed, another text), over several
strings.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from pocketsphinx import Decoder

from streaming_server.audio.pcm import Resampler, to_int16
from streaming_server.domain import FloatSamples, IntSamples
from streaming_server.engines.espeak.library import EspeakLibrary, Timbre, find_files

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STRINGS = ("7666461420", "5830917462", "3141592653", "0581379246", "6029481735")
"""Strings that are recognised correctly in the voice of espeak-ng; several, because a control may match by chance."""
SPEECH = Timbre(rate_wpm=140)
"""How the recogniser understands espeak-ng best."""
_RECOGNISER_HZ = 16000
_PADDING_S = 0.3
_DITHER_LSB = 20


def recognise_digits(samples: FloatSamples, rate_hz: int, count: int) -> str:
    """Return the digits in mono samples, shape ``(n,)``: ``count`` digits, or fewer if nothing matches."""
    resampler = Resampler(rate_hz, _RECOGNISER_HZ)
    heard = np.concatenate([resampler.push(to_int16(samples)), resampler.finish()])
    padded = np.pad(heard.astype(np.int32), round(_PADDING_S * _RECOGNISER_HZ))
    # The recogniser is not trained on digital silence.
    padded += np.random.default_rng(0).integers(-_DITHER_LSB, _DITHER_LSB + 1, padded.size)
    decoder = _decoder(count)
    decoder.start_utt()
    decoder.process_raw(padded.clip(-32768, 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    words = hypothesis.hypstr.split() if hypothesis else []
    return "".join(str(DIGITS.index(word)) for word in words if word in DIGITS)


def agreement(heard: str, spoken: str) -> float:
    """Return the share of matching digits by position, 0-1."""
    return sum(a == b for a, b in zip(heard, spoken, strict=False)) / len(spoken)


def say_digits(digits: str, timbre: Timbre = SPEECH) -> tuple[IntSamples, int]:
    """Return the digits spoken by espeak-ng, shape ``(n,)``, and the sample rate in Hz."""
    return say(". ".join(DIGITS[int(digit)] for digit in digits) + ".", timbre)


def say(text: str, timbre: Timbre = SPEECH) -> tuple[IntSamples, int]:
    """Return English speech, shape ``(n,)``, and the sample rate in Hz."""
    library = _library()
    chunks: list[bytes] = []
    library.speak(text, "en-us", timbre, chunks.append)
    return np.frombuffer(b"".join(chunks), np.int16), library.sample_rate_hz


@cache
def _library() -> EspeakLibrary:
    return EspeakLibrary(*find_files())


@cache
def _decoder(count: int) -> Decoder:
    decoder = Decoder(samprate=_RECOGNISER_HZ, lm=None, loglevel="FATAL")
    words = " | ".join(DIGITS)
    said = "<digit> " * count
    decoder.add_jsgf_string("digits", f"#JSGF V1.0; grammar digits; public <said> = {said}; <digit> = {words};")
    decoder.activate_search("digits")
    return decoder
