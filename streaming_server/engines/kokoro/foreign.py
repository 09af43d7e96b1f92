"""Phonemes of Spanish, French, Hindi, Italian and Portuguese, by espeak-ng, in Kokoro's alphabet."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from streaming_server.engines.espeak.bounds import bounded
from streaming_server.engines.espeak.library import TIE
from streaming_server.engines.espeak.process import EspeakProcess
from streaming_server.errors import EngineUnavailable, InvalidRequest

ESPEAK_VOICES: Mapping[str, str] = {"es": "es", "fr": "fr", "hi": "hi", "it": "it", "pt-br": "pt-br"}
"""espeak-ng's name of each language."""
_MARKS = re.compile(r"\s*((?:[;:,.!?…—–()\[\]«»“”\"¡¿।]+(?=\s|$|[«“\"(¡¿])|[«“\"(¡¿]+|\s[-–—]\s)\s*)")
_MARK = str.maketrans("–«»[]।", "—“”().", "¡¿")
_SINGLE = {"aɪ": "I", "aʊ": "W", "dz": "ʣ", "dʒ": "ʤ", "eɪ": "A", "oʊ": "O", "əʊ": "Q", "ss": "S"}
_SINGLE |= {"ts": "ʦ", "tʃ": "ʧ", "ɔɪ": "Y"}
_TIED = {f"{phonemes[0]}{TIE}{phonemes[1]}": letter for phonemes, letter in _SINGLE.items()}
"""Two phonemes that are one letter of the alphabet, as misaki has them."""
_SWITCH = re.compile(r"\([a-z-]+\)")
"""espeak-ng marks words that it reads as another language."""


class EspeakPhonemes:
    """espeak-ng in its child process, for the thread that the engine works on."""

    def __init__(self) -> None:
        """
        Raises:
            InvalidRequest: espeak-ng is not installed.
        """
        try:
            self._process = EspeakProcess()
        except EngineUnavailable as error:
            raise InvalidRequest(
                "text is in a language for which the kokoro engine needs espeak-ng (scripts/install espeak): it speaks "
                f"English, Mandarin and Japanese without it ({error})",
                "text",
            ) from error

    def convert(self, sentence: str, language: str, loop: asyncio.AbstractEventLoop) -> str:
        """The phonemes of one sentence, with its punctuation, empty where nothing in it can be spoken.

        Blocks while ``loop`` talks to the child process.

        Raises:
            EngineFailed: espeak-ng crashes on this text.
        """
        words, marks = split_at_marks(bounded(sentence))
        asked = self._process.phonemes(words, ESPEAK_VOICES[language])
        heard = asyncio.run_coroutine_threadsafe(asked, loop).result()
        phonemes = "".join(part for pair in zip(map(in_alphabet, heard), marks, strict=True) for part in pair)
        return phonemes.strip() if any(map(str.isalpha, phonemes)) else ""

    async def aclose(self) -> None:
        """End the child process."""
        await self._process.aclose()


def split_at_marks(sentence: str) -> tuple[list[str], list[str]]:
    """The words between punctuation, and the mark behind each; espeak-ng's phonemes have none.

    A point or a comma inside a number is none.
    """
    parts = _MARKS.split(sentence)
    words, marks = parts[::2], [_as_mark(mark) for mark in parts[1::2]] + [""]
    return words, marks


def in_alphabet(phonemes: str) -> str:
    """Phonemes of espeak-ng as Kokoro has learnt them."""
    for tied, letter in _TIED.items():
        phonemes = phonemes.replace(tied, letter)
    return " ".join(_SWITCH.sub("", phonemes.replace(TIE, "")).replace("-", "").split())


def _as_mark(mark: str) -> str:
    found = mark.strip().translate(_MARK)
    found = "—" if found == "-" else found
    if found == "—":
        return " — "
    return f" {found}" if found[:1] in {"“", "("} else f"{found} "
