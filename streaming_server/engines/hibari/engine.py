"""The hibari engine: neural English in eleven voices, other scripts by espeak-ng, without cloning."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from random import Random

import anyio
import numpy as np

from streaming_server.domain import (
    AudioChunk,
    Capability,
    Emotion,
    FloatSamples,
    Generation,
    SpeechRequest,
    Voice,
)
from streaming_server.engines.base import Engine, EngineInfo
from streaming_server.engines.emotion_words import vector_of
from streaming_server.engines.espeak.languages import runs
from streaming_server.engines.espeak.voices import nearest_preset
from streaming_server.engines.hibari.emotion import with_emotion
from streaming_server.engines.hibari.joins import Levelled, pause_s, silence, trimmed
from streaming_server.engines.hibari.network import SAMPLE_RATE_HZ, Frames, Network
from streaming_server.engines.hibari.rendering import Timbre, render
from streaming_server.engines.hibari.voices import VOICES, SpeakerCache
from streaming_server.engines.onnx.clauses import clauses
from streaming_server.engines.onnx.english import EnglishPhonemes
from streaming_server.engines.threads import Emit, OwnerThread
from streaming_server.errors import EngineUnavailable, InvalidRequest
from streaming_server.segmentation import sentences

log = logging.getLogger(__name__)

_ENGLISH = "en-us"
_MAX_CLAUSE_PHONEMES = 150
"""About ten seconds of speech: the network cannot be interrupted within a clause."""
_OPENING_PHONEMES = 40
"""The first sentence is cut into clauses where it is longer."""
_MAX_ON_LOOP_CHARACTERS = 2000
_LEAD_S = 0.02
_SHOWN_CHARACTERS = 20


class HibariEngine:
    """Engine over hibari's network, and over espeak-ng for scripts that it does not read."""

    def __init__(self, espeak: Engine | None = None) -> None:
        """``espeak``: speaks what is not in Latin script; None refuses such text.

        Raises:
            EngineUnavailable: the installed hibari-tts does not fit.
        """
        self._network = Network()
        self._espeak = espeak
        self._english: EnglishPhonemes | None = None
        self._speakers = SpeakerCache()
        self._thread = OwnerThread("hibari")
        self._ahead = ThreadPoolExecutor(1, "hibari-network")
        self.info = EngineInfo(
            name="hibari",
            model_version=self._network.version,
            sample_rate_hz=SAMPLE_RATE_HZ,
            capabilities=frozenset(
                {
                    Capability.TEXT_TO_SPEECH,
                    Capability.TOKEN_STREAMING,
                    Capability.SEED,
                    Capability.EMOTION_CONTROL,
                    Capability.EMOTION_VECTOR,
                    Capability.EMOTION_TEXT,
                    Capability.EMOTION_RANDOM,
                }
                | ({Capability.MULTI_LANGUAGE} if espeak is not None else set())
            ),
            emotion_text_by="words",
            presets=VOICES,
        )

    async def warm(self) -> None:
        """Load the lexicon and the networks, speak once."""
        self._english = await self._thread.call(EnglishPhonemes)
        async with aclosing(self._speak("Ready, steady.", Timbre(), np.random.default_rng(0), opening=True)) as chunks:
            async for _ in chunks:
                pass
        if self._espeak is not None:
            await self._espeak.warm()

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Chunks of 0.15 s at first and up to 0.6 s later, as `Engine.stream`.

        Raises:
            InvalidRequest: text in another script, where espeak-ng is not installed.
        """
        if request.generation != Generation(seed=request.generation.seed):
            log.info("generation parameters ignored: engine=hibari")
        if len(request.text) > _MAX_ON_LOOP_CHARACTERS:
            parts = await anyio.to_thread.run_sync(_parts, request.text)
        else:
            parts = _parts(request.text)
        foreign = next((part for language, part in parts if language != _ENGLISH), None)
        if foreign is not None and self._espeak is None:
            raise InvalidRequest(
                f"text has characters that the hibari engine cannot speak, {foreign.strip()[:_SHOWN_CHARACTERS]!r}: "
                "it speaks Latin script as English, and other scripts only where espeak-ng is installed "
                "(scripts/install espeak)",
                "text",
            )
        speaker = await self._speakers.find(request.voice)
        timbre = _with_emotion(speaker.timbre, request.emotion, request.generation.seed)
        other_voice = Voice(nearest_preset(speaker.median_pitch_hz).name, is_preset=True)
        rng = np.random.default_rng(request.generation.seed)
        level = Levelled(timbre.gain_db - speaker.timbre.gain_db)
        is_silent = True
        for number, (language, part) in enumerate(parts, 1):
            if language == _ENGLISH:
                chunks = self._speak(part, timbre, rng, opening=is_silent)
            else:
                chunks = self._speak_other(replace(request, text=part, voice=other_voice), level)
            async with aclosing(chunks):
                async for chunk in chunks:
                    is_silent = False
                    yield chunk
            if number < len(parts) and not is_silent:
                yield AudioChunk(silence(pause_s(part)))
        if is_silent:  # nothing in the text can be spoken; an empty file would be an error to most players
            yield AudioChunk(silence(pause_s(".")))

    def _speak(
        self, text: str, timbre: Timbre, rng: np.random.Generator, *, opening: bool
    ) -> AsyncGenerator[AudioChunk, None]:
        return self._thread.iterate(partial(self._produce, text, timbre, rng, opening))

    def _produce(
        self, text: str, timbre: Timbre, rng: np.random.Generator, opening: bool, emit: Emit[AudioChunk]
    ) -> None:
        """Render each clause while the network works on the next."""
        clause_frames = self._clause_frames(text, opening)
        coming = self._ahead.submit(next, clause_frames, None)
        try:
            pause: FloatSamples = silence(_LEAD_S if opening else 0)
            while (clause := coming.result()) is not None:
                coming = self._ahead.submit(next, clause_frames, None)
                phonemes, frames = clause
                for piece in render(frames, timbre, rng):
                    if not emit(AudioChunk(np.concatenate([pause, piece]))):
                        return
                    pause = pause[:0]
                pause = silence(pause_s(phonemes) / timbre.rate)
        finally:
            _settle(coming)

    def _clause_frames(self, text: str, opening: bool) -> Iterator[tuple[str, Frames]]:
        if self._english is None:
            raise EngineUnavailable("the hibari engine is used before it is warm")
        for sentence in sentences(text):
            phonemes = self._english(sentence)
            for clause in clauses(phonemes, _MAX_CLAUSE_PHONEMES, _OPENING_PHONEMES if opening else None):
                frames = trimmed(self._network.run(clause))
                if frames.f0_hz.size:
                    opening = False
                    yield clause, frames

    async def _speak_other(self, request: SpeechRequest, level: Levelled) -> AsyncGenerator[AudioChunk, None]:
        if self._espeak is None:
            return
        fitted = level.joined(self._espeak.info.sample_rate_hz)
        async with aclosing(self._espeak.stream(request)) as chunks:
            async for chunk in chunks:
                if (samples := fitted.push(chunk.samples)).size:
                    yield AudioChunk(samples)
        if (samples := fitted.finish()).size:
            yield AudioChunk(samples)

    async def aclose(self) -> None:
        """End the threads, and espeak-ng."""
        await self._thread.aclose()
        self._ahead.shutdown()
        if self._espeak is not None:
            await self._espeak.aclose()


def _parts(text: str) -> list[tuple[str, str]]:
    return list(runs(text))


def _settle(work: Future[tuple[str, Frames] | None]) -> None:
    """Wait for work that nobody needs any more: the engine is idle only then."""
    if not work.cancel():
        work.exception()


def _with_emotion(timbre: Timbre, emotion: Emotion | None, seed: int | None) -> Timbre:
    if emotion is None:
        return timbre
    return with_emotion(timbre, vector_of(emotion, "hibari"), emotion.weight, Random(seed) if emotion.random else None)
