"""The pocket engine: Pocket TTS clones a recording on the CPU and streams frames of 80 ms."""

from __future__ import annotations

import asyncio
import logging
import threading
import unicodedata
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from importlib.metadata import version
from pathlib import Path

import numpy as np

from streaming_server.audio.decode import decode_mono
from streaming_server.domain import AudioChunk, Capability, Generation, SpeechRequest, Voice
from streaming_server.engines.base import EngineInfo
from streaming_server.engines.content_cache import ContentCache, FileDigests
from streaming_server.engines.pocket.folder import AUTO, choose_language, problem
from streaming_server.engines.pocket.model import PocketModel, VoiceState, read_config
from streaming_server.engines.threads import Emit, OwnerThread
from streaming_server.errors import EngineNotReady, EngineUnavailable, InvalidRequest, VoiceUnknown
from streaming_server.segmentation import sentences
from streaming_server.text import pause_s, pieces

log = logging.getLogger(__name__)

_MAX_RECORDING_S = 30.0
"""Seconds of a recording that the package uses by default."""
_MAX_VOICES = 32
"""Number of cached voices; a state of 30 s has 18 MB, or 74 MB in the models with 24 layers."""
_MAX_PART_CHARACTERS = 1000
"""Maximum length of a part: the package splits texts in quadratic time."""
_MAX_PIECE_CHARACTERS = 150
"""Maximum length between two marks: the package may skip words of more than 50 tokens."""
_SILENCE_S = 0.35
_SHOWN_CHARACTERS = 20
_LATIN = ("LATIN", "FULLWIDTH LATIN", "MODIFIER LETTER", "FEMININE ORDINAL", "MASCULINE ORDINAL", "MICRO")
"""Prefixes of the Unicode names of letters in Latin text."""


class PocketEngine:
    """Engine for one model of one language."""

    def __init__(self, *, model_dir: Path, language: str = AUTO) -> None:
        """``language``: the name of a folder in ``languages/``, or ``auto``.

        Raises:
            EngineUnavailable: a file is missing, or the configuration is damaged.
        """
        files = choose_language(model_dir, language)
        if files is None or not files.tokenizer.is_file():
            raise EngineUnavailable(problem(model_dir, language))
        self._files = files
        self._config = read_config(files)
        self._rate_hz = self._config.mimi.sample_rate
        self._model: PocketModel | None = None
        self._digests = FileDigests()
        self._voices = ContentCache[VoiceState](_MAX_VOICES, self._digests)
        self._presets = files.voices
        self._thread = OwnerThread("pocket")
        codes = (files.code,) if files.code else ()
        self.info = EngineInfo(
            name="pocket",
            model_version=f"{version('pocket-tts')} {files.name}",
            sample_rate_hz=self._rate_hz,
            precision="fp32",
            config_path=str(files.config) if files.config.is_file() else "",
            model_dir=str(model_dir),
            capabilities=frozenset(
                {
                    Capability.TEXT_TO_SPEECH,
                    Capability.VOICE_CLONING,
                    Capability.TOKEN_STREAMING,
                    Capability.SEED,
                }
            ),
            presets=tuple(
                Voice(name, is_preset=True, title=name.replace("_", " ").title(), languages=codes)
                for name in self._presets
            ),
            languages=codes,
        )

    async def warm(self) -> None:
        """Load the model, clone a second of silence and synthesise a word."""
        if self._model is None:
            self._model = await self._thread.call(self._load)

    async def prepare(self, request: SpeechRequest) -> None:
        """Hash the recordings before the slot is entered."""
        for voice in request.voices:
            await asyncio.to_thread(self._digests.of, self._path(voice))

    def refusal(self, request: SpeechRequest) -> str:
        if not self._files.code or request.text.isascii():
            return ""
        foreign = [letter for letter in request.text if letter.isalpha() and not _is_latin(letter)]
        if not foreign:
            return ""
        shown = "".join(foreign[:_SHOWN_CHARACTERS])
        return (
            f"has characters that the pocket engine cannot speak, {shown!r}: the model of the language "
            f"{self._files.name!r} reads Latin script"
        )

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Yield frames of 80 ms. A voice is analysed at its first use.

        Raises:
            EngineNotReady: ``warm`` has not completed.
            InvalidRequest: the text has letters of another script than the model's language.
            VoiceFileMissing: the recording of the voice does not exist.
        """
        model = self._model
        if model is None:
            raise EngineNotReady
        if request.generation != Generation(seed=request.generation.seed):
            log.info("generation parameters ignored: engine=pocket")
        if problem := self.refusal(request):
            raise InvalidRequest(f"text {problem}", "text")
        path = self._path(request.voice)
        stop = threading.Event()

        def analyse(path: Path) -> VoiceState:
            if request.voice.is_preset:
                return model.read_voice(path)
            return model.clone(decode_mono(path, self._rate_hz, _MAX_RECORDING_S), stop)

        def produce(emit: Emit[AudioChunk]) -> None:
            voice = self._voices.get(path, analyse)
            is_silent = True
            with closing(model.speak(_parts(request.text), voice, request.generation.seed, stop)) as frames:
                for samples in frames:
                    is_silent = False
                    if not emit(AudioChunk(samples)):
                        return
            if is_silent:  # the text has no pronounceable characters; most players fail on empty files
                emit(AudioChunk(np.zeros(round(_SILENCE_S * self._rate_hz), np.float32)))

        async with aclosing(self._thread.iterate(produce, stop=stop.set)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def aclose(self) -> None:
        """Stop the thread."""
        await self._thread.aclose()

    def _load(self) -> PocketModel:
        model = PocketModel(self._files, self._config)
        voice = model.clone(np.zeros(self._rate_hz, np.float32), threading.Event())
        with closing(model.speak(iter(["Yes."]), voice, 0, threading.Event())) as frames:
            next(frames)
        return model

    def _path(self, voice: Voice) -> Path:
        if not voice.is_preset:
            return voice.path
        if voice.name not in self._presets:
            raise VoiceUnknown(voice.name, list(self._presets))
        return self._presets[voice.name]


def _is_latin(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_LATIN)


def _parts(text: str) -> Iterator[str]:
    """Split into parts of limited length at sentence ends, without unpronounceable ones.

    The package splits a part after marks only: a line and a piece of a long clause get a full stop.
    """
    part = ""
    unwrapped = (" ".join(sentence.split()) for sentence in sentences(text))
    for piece in (piece.strip() for sentence in unwrapped for piece in pieces(sentence, _MAX_PIECE_CHARACTERS)):
        if not any(letter.isalnum() for letter in piece):
            continue
        if part and len(part) + len(piece) > _MAX_PART_CHARACTERS:
            yield part
            part = ""
        part = f"{part} {piece}".strip()
        if not pause_s(piece):
            part += "."
    if part:
        yield part
