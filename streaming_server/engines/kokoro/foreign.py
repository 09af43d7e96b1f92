"""Spanish, French, Hindi, Italian and Portuguese to phonemes in Kokoro's alphabet, with espeak-ng."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from streaming_server.engines.espeak.bounds import bounded
from streaming_server.engines.espeak.library import TIE, find_files
from streaming_server.engines.espeak.process import EspeakProcess
from streaming_server.errors import EngineUnavailable

ESPEAK_VOICES: Mapping[str, str] = {"es": "es", "fr": "fr", "hi": "hi", "it": "it", "pt-br": "pt-br"}
"""espeak-ng's names of the languages."""
_MARKS = re.compile(r"\s*((?:[;:,.!?…—–()\[\]«»“”\"¡¿।]+(?=\s|$|[«“\"(¡¿])|[«“\"(¡¿]+|\s[-–—]\s)\s*)")
_MARK = str.maketrans("–«»[]।", "—“”().", "¡¿")
_SINGLE = {"aɪ": "I", "aʊ": "W", "dz": "ʣ", "dʒ": "ʤ", "eɪ": "A", "oʊ": "O", "əʊ": "Q", "ss": "S"}
_SINGLE |= {"ts": "ʦ", "tʃ": "ʧ", "ɔɪ": "Y"}
_TIED = {f"{phonemes[0]}{TIE}{phonemes[1]}": letter for phonemes, letter in _SINGLE.items()}
"""Pairs of phonemes that are one letter of misaki's alphabet."""
_SWITCH = re.compile(r"\([a-z-]+\)")
"""Marks of espeak-ng for words in another language."""


def missing_espeak() -> str:
    """Why there is no espeak-ng, as a phrase that follows a text's name; empty if it is installed."""
    try:
        find_files()
    except EngineUnavailable as error:
        return (
            "is in a language for which the kokoro engine needs espeak-ng (scripts/install espeak): it speaks English, "
            f"Mandarin and Japanese without it ({error})"
        )
    return ""


class EspeakPhonemes:
    """espeak-ng in a child process, for use from the engine's thread."""

    def __init__(self) -> None:
        """
        Raises:
            EngineUnavailable: espeak-ng is not installed or does not load.
        """
        self._process = EspeakProcess()

    def convert(self, sentence: str, language: str, loop: asyncio.AbstractEventLoop) -> str:
        """Return the phonemes of one sentence with its punctuation; empty if it has no pronounceable characters.

        Blocks while ``loop`` communicates with the child process.

        Raises:
            EngineFailed: espeak-ng crashes on this text.
        """
        words, marks = split_at_marks(bounded(sentence))
        asked = self._process.phonemes(words, ESPEAK_VOICES[language])
        heard = asyncio.run_coroutine_threadsafe(asked, loop).result()
        phonemes = "".join(part for pair in zip(map(in_alphabet, heard), marks, strict=True) for part in pair)
        return phonemes.strip() if any(map(str.isalpha, phonemes)) else ""

    async def aclose(self) -> None:
        """Stop the child process."""
        await self._process.aclose()


def split_at_marks(sentence: str) -> tuple[list[str], list[str]]:
    """Split a sentence at punctuation, which espeak-ng's phonemes lack, into words and the mark after them.

    A point or a comma inside a number is not a mark.
    """
    parts = _MARKS.split(sentence)
    words, marks = parts[::2], [_as_mark(mark) for mark in parts[1::2]] + [""]
    return words, marks


def in_alphabet(phonemes: str) -> str:
    """Convert phonemes of espeak-ng to Kokoro's alphabet."""
    for tied, letter in _TIED.items():
        phonemes = phonemes.replace(tied, letter)
    return " ".join(_SWITCH.sub("", phonemes.replace(TIE, "")).replace("-", "").split())


def _as_mark(mark: str) -> str:
    found = mark.strip().translate(_MARK)
    found = "—" if found == "-" else found
    if found == "—":
        return " — "
    return f" {found}" if found[:1] in {"“", "("} else f"{found} "
