"""The espeak-ng shared library, through ctypes (speak_lib.h).

Knows samples and espeak's own parameters; not requests, and not which voice suits which text.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streaming_server.domain import IntSamples
from streaming_server.errors import EngineFailed, EngineUnavailable

CHUNK_MS = 100
"""A tenth of a millisecond of work; the way from the callback to Python costs as much for any size."""
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_UTF8, _END_PAUSE = 0x1, 0x1000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CONTINUE, _STOP = 0, 1

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Timbre:
    """How espeak-ng is to sound."""

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


class EspeakLibrary:
    """One independent espeak-ng. Not thread-safe: one thread at a time may call it."""

    def __init__(self) -> None:
        """
        Raises:
            EngineUnavailable: the package espeakng-loader is missing, or its library does not load.
        """
        try:
            import espeakng_loader
        except ImportError as error:
            raise EngineUnavailable("the espeak engine needs a package: run scripts/install espeak") from error
        self._data = Path(espeakng_loader.get_data_path())
        self._library = _load_private_copy(Path(espeakng_loader.get_library_path()))
        data = str(self._data).encode()
        self.sample_rate_hz: int = self._library.espeak_Initialize(_SYNCHRONOUS, CHUNK_MS, data, _DONT_EXIT)
        if self.sample_rate_hz <= 0:
            raise EngineUnavailable(f"espeak-ng does not find its data in {self._data}")
        self._library.espeak_Info.restype = ctypes.c_char_p
        self.version: str = self._library.espeak_Info(None).decode().split()[0]
        self._receive: Callable[[IntSamples], bool] | None = None
        self._stopped = False
        self._error: BaseException | None = None
        self._callback = _Callback(self._on_samples)  # kept: espeak-ng holds its address
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(
        self, text: str, language: str, timbre: Timbre, receive: Callable[[IntSamples], bool], *, pause: bool = False
    ) -> bool:
        """Synthesise, blocking; chunks of `CHUNK_MS` go to ``receive``, which returns False to stop.

        Args:
            text: no markup; NUL would end it.
            language: an espeak-ng voice such as ``cmn`` or ``en-us``.
            timbre: the speaker.
            receive: takes samples, shape ``(n,)``, at ``sample_rate_hz``.
            pause: end with the pause that the text's last punctuation asks for.

        Returns:
            Whether the text was spoken to its end.

        Raises:
            EngineFailed: espeak-ng refuses the voice or the text.
        """
        self._set(language, timbre)
        self._receive, self._stopped, self._error = receive, False, None
        encoded = text.encode() + b"\0"
        flags = _UTF8 | (_END_PAUSE if pause else 0)
        result = self._library.espeak_Synth(encoded, len(encoded), 0, 1, 0, flags, None, None)
        self._receive = None
        if self._error is not None:
            raise self._error
        if result and not self._stopped:
            raise EngineFailed(f"espeak-ng failed with code {result}")
        return not self._stopped

    def close(self) -> None:
        """Free what espeak-ng holds."""
        self._library.espeak_Terminate()

    def _set(self, language: str, timbre: Timbre) -> None:
        # An unknown variant would be ignored in silence.
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

    def _on_samples(self, samples: Any, count: int, _events: Any) -> int:
        if not count or self._receive is None:
            return _CONTINUE
        try:
            chunk = np.frombuffer(ctypes.string_at(samples, count * 2), np.int16)
            self._stopped = not self._receive(chunk)
        except BaseException as error:  # an exception must not cross the C frames
            self._error = error
            self._stopped = True
        return _STOP if self._stopped else _CONTINUE


def _load_private_copy(library: Path) -> Any:
    """Load a copy of the file: espeak-ng's state is global to a loaded file, and two engines must not share it."""
    with tempfile.NamedTemporaryFile(suffix=library.suffix) as copy:
        with library.open("rb") as original:
            shutil.copyfileobj(original, copy)
        copy.flush()
        try:
            return ctypes.CDLL(copy.name)
        except OSError as error:
            raise EngineUnavailable(f"the espeak-ng library does not load: {error}") from error
