"""The espeak engine: speech in many languages at a thousand times real time, in eleven voices, without cloning."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from itertools import accumulate
from random import Random

import anyio

from streaming_server.audio.pcm import to_float32
from streaming_server.domain import (
    AudioChunk,
    Capability,
    Emotion,
    Generation,
    Mark,
    SpeechRequest,
)
from streaming_server.engines.base import EngineInfo
from streaming_server.engines.emotion_words import vector_of
from streaming_server.engines.espeak.bounds import bounded
from streaming_server.engines.espeak.emotion import with_emotion
from streaming_server.engines.espeak.languages import runs
from streaming_server.engines.espeak.library import Timbre
from streaming_server.engines.espeak.process import EspeakProcess, SpokenWord, Utterance
from streaming_server.engines.espeak.voices import BY_NAME, PRESETS, VOICES, nearest_preset
from streaming_server.engines.recording_voices import RecordingVoices

log = logging.getLogger(__name__)

_PAUSING = tuple(",.;:!?…，。；：！？、\n")
_MAX_ON_LOOP = 2000
"""Characters that are prepared on the event loop: about a millisecond."""


class EspeakEngine:
    """Engine over espeak-ng in a child process."""

    def __init__(self) -> None:
        """
        Raises:
            EngineUnavailable: espeak-ng is not installed or does not load.
        """
        self._process = EspeakProcess()
        self._presets = RecordingVoices(PRESETS, nearest_preset)
        self.info = EngineInfo(
            name="espeak",
            model_version=self._process.version,
            sample_rate_hz=self._process.sample_rate_hz,
            # No SPEED: espeak-ng's own rate is up to a third beside the ratio asked for.
            capabilities=frozenset(
                {
                    Capability.TEXT_TO_SPEECH,
                    Capability.MULTI_LANGUAGE,
                    Capability.SEED,
                    Capability.EMOTION_CONTROL,
                    Capability.EMOTION_VECTOR,
                    Capability.EMOTION_TEXT,
                    Capability.EMOTION_RANDOM,
                }
            ),
            emotion_text_by="words",
            presets=VOICES,
        )

    async def warm(self) -> None:
        """Speak once, as `Engine.warm`."""
        async with aclosing(self._process.speak(utterances("a", PRESETS[0].timbre))) as chunks:
            async for _ in chunks:
                pass

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Chunks of 100 ms to 1.4 s, as `Engine.stream`."""
        if request.generation != Generation(seed=request.generation.seed):
            log.info("generation parameters ignored: engine=espeak")
        voice = request.voice
        preset = BY_NAME[voice.name] if voice.is_preset else await self._presets.find(voice.path)
        timbre = _with_emotion(preset.timbre, request.emotion, request.generation.seed)
        if len(request.text) > _MAX_ON_LOOP:
            parts, places = await anyio.to_thread.run_sync(_prepared, request.text, timbre)
        else:
            parts, places = _prepared(request.text, timbre)
        async with aclosing(self._process.speak(parts)) as chunks:
            async for chunk in chunks:
                marks = places.marks(chunk.words, self.info.sample_rate_hz)
                yield AudioChunk(to_float32(chunk.samples), marks)

    async def aclose(self) -> None:
        """End the child process."""
        await self._process.aclose()


def _prepared(text: str, timbre: Timbre) -> tuple[list[Utterance], _Places]:
    parts = utterances(text, timbre)
    return parts, _Places(text, parts)


class _Places:
    """Finds the words of utterances in the text that these are made of."""

    def __init__(self, text: str, parts: Sequence[Utterance]) -> None:
        lengths = [len(part) for _, part in runs(text)]
        self._begins = [0, *accumulate(lengths)]
        # A part that was changed to fit espeak-ng's bounds is known by its beginning alone.
        self._is_same = [len(part.text) == length for part, length in zip(parts, lengths, strict=True)]
        self._last = -1

    def marks(self, words: Iterable[SpokenWord], rate_hz: int) -> list[Mark]:
        found = []
        for word in words:
            begin, end = self._begins[word.utterance : word.utterance + 2]
            character = min(begin + word.character, end) if self._is_same[word.utterance] else begin
            if character > self._last:  # a number is several words in one place
                found.append(Mark(character, word.sample / rate_hz))
                self._last = character
        return found


def utterances(text: str, timbre: Timbre) -> list[Utterance]:
    """The text in pieces of one language each, within the bounds of espeak-ng."""
    parts = list(runs(text))
    return [
        # A pause belongs to punctuation, not to a change of language in the middle of a sentence.
        Utterance(bounded(part), language, timbre, pause=number < len(parts) and part.rstrip(" ").endswith(_PAUSING))
        for number, (language, part) in enumerate(parts, 1)
    ]


def _with_emotion(timbre: Timbre, emotion: Emotion | None, seed: int | None) -> Timbre:
    if emotion is None:
        return timbre
    return with_emotion(timbre, vector_of(emotion, "espeak"), emotion.weight, Random(seed) if emotion.random else None)
