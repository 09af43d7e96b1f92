"""The espeak-ng shared library, through ctypes (``speak_lib.h``).

Imports neither numpy nor anything else that takes long: the child process loads this module.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming_server.errors import EngineFailed, EngineUnavailable

CHUNK_MS = 100
"""One chunk takes about 0.1 ms to synthesise; a shorter one would cost as much for its callback."""
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_UTF8, _PHONEMES, _END_PAUSE = 0x1, 0x100, 0x1000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CONTINUE, _STOP = 0, 1
TIE = "^"
"""Joins the letters of one phoneme in the International Phonetic Alphabet."""
_IPA, _TIED = 0x02, 0x80

_WORD_EVENT = 1


class _Event(ctypes.Structure):
    """``espeak_EVENT``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, slots=True)
class Timbre:
    """Voice parameters of espeak-ng."""

    variant: str = ""
    """A file of ``espeak-ng-data/voices/!v``; empty for the plain voice."""
    pitch: int = 50
    """0-99."""
    pitch_range: int = 50
    """0-99; 0 is monotone."""
    rate_wpm: int = 175
    """80-450 words a minute."""
    volume: int = 100
    """0-200."""


def find_files() -> tuple[Path, Path]:
    """The shared library and its data folder.

    Raises:
        EngineUnavailable: the package espeakng-loader is not installed.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise EngineUnavailable("the espeak engine needs espeakng-loader: scripts/install espeak") from error
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


class EspeakLibrary:
    """espeak-ng in this process. Its state is global: one instance a process, and one thread at a time."""

    def __init__(self, library: Path, data: Path) -> None:
        """
        Raises:
            EngineUnavailable: the library does not load, or does not find its data.
        """
        self._data = data
        try:
            self._library: Any = ctypes.CDLL(str(library))
        except OSError as error:
            raise EngineUnavailable(f"the espeak-ng library does not load: {error}") from error
        self.sample_rate_hz: int = self._library.espeak_Initialize(
            _SYNCHRONOUS, CHUNK_MS, str(data).encode(), _DONT_EXIT
        )
        if self.sample_rate_hz <= 0:
            raise EngineUnavailable(f"espeak-ng does not find its data in {data}")
        self._library.espeak_Info.restype = ctypes.c_char_p
        self.version: str = self._library.espeak_Info(None).decode().split()[0]
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._receive: Callable[[bytes], object] | None = None
        self._receive_word: Callable[[int, int], object] = lambda *_: None
        self._error: BaseException | None = None
        self._callback = _Callback(self._on_samples)  # kept: espeak-ng holds its address
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(
        self,
        text: str,
        language: str,
        timbre: Timbre,
        receive: Callable[[bytes], object],
        *,
        has_phonemes: bool = False,
        pause: bool = False,
        receive_word: Callable[[int, int], object] = lambda *_: None,
    ) -> None:
        """Synthesise a text, blocking.

        Args:
            text: NUL ends it.
            language: an espeak-ng voice such as ``cmn`` or ``en-us``.
            timbre: the speaker.
            receive: takes chunks of `CHUNK_MS`, signed 16-bit samples in native order; its exception ends the
                synthesis and is raised here.
            has_phonemes: the text may have names of phonemes between ``[[`` and ``]]``.
            pause: end with the pause that the text's last punctuation asks for.
            receive_word: takes the index of a word's first character and the sample at which it begins, before
                ``receive`` takes that sample; its exception as that of ``receive``.

        Raises:
            EngineFailed: espeak-ng refuses the voice or the text.
        """
        self._set(language, timbre)
        self._receive, self._receive_word, self._error = receive, receive_word, None
        encoded = text.encode() + b"\0"
        flags = _UTF8 | (_END_PAUSE if pause else 0) | (_PHONEMES if has_phonemes else 0)
        result = self._library.espeak_Synth(encoded, len(encoded), 0, 1, 0, flags, None, None)
        self._receive = None
        if self._error is not None:
            raise self._error
        if result:
            raise EngineFailed(f"espeak-ng failed with code {result}")

    def phonemes(self, text: str, language: str) -> str:
        """A text in the International Phonetic Alphabet with stress marks and `TIE`; punctuation is lost.

        Raises:
            EngineFailed: espeak-ng has no such language.
        """
        self._set(language, Timbre())
        rest = ctypes.c_char_p(text.encode())
        clauses: list[bytes] = []
        while rest.value is not None:
            mode = _IPA | _TIED | ord(TIE) << 8
            clauses.append(self._library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, mode) or b"")
        return b" ".join(clauses).decode()

    def _set(self, language: str, timbre: Timbre) -> None:
        # espeak-ng ignores an unknown variant.
        if timbre.variant and not (self._data / "voices" / "!v" / timbre.variant).is_file():
            raise EngineFailed(f"espeak-ng has no voice variant {timbre.variant}")
        name = f"{language}+{timbre.variant}" if timbre.variant else language
        if self._library.espeak_SetVoiceByName(name.encode()):
            raise EngineFailed(f"espeak-ng has no voice {language}")
        parameters = (
            (_RATE, timbre.rate_wpm),
            (_VOLUME, timbre.volume),
            (_PITCH, timbre.pitch),
            (_RANGE, timbre.pitch_range),
        )
        for parameter, value in parameters:
            self._library.espeak_SetParameter(parameter, value, 0)

    def _on_samples(self, samples: Any, count: int, events: Any) -> int:
        if not count or self._receive is None:
            return _CONTINUE
        try:
            number = 0
            while (event := events[number]).type:  # the list ends with an event of type 0
                if event.type == _WORD_EVENT:
                    self._receive_word(event.text_position - 1, event.sample)
                number += 1
            self._receive(ctypes.string_at(samples, count * 2))
        except BaseException as error:  # an exception must not cross the C frames
            self._error = error
            return _STOP
        return _CONTINUE
