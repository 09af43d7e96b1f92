"""The espeak engine: speech in many languages at a thousand times real time, in eleven voices, without cloning."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from random import Random

from streaming_server.audio.pcm import to_float32
from streaming_server.domain import (
    AudioChunk,
    Capability,
    Emotion,
    EmotionVector,
    Generation,
    IntSamples,
    SpeechRequest,
)
from streaming_server.engines.base import EngineInfo
from streaming_server.engines.emotion_words import vector_from_words
from streaming_server.engines.espeak.emotion import with_emotion
from streaming_server.engines.espeak.languages import runs
from streaming_server.engines.espeak.library import EspeakLibrary, Timbre
from streaming_server.engines.espeak.voices import PRESETS, preset_for
from streaming_server.engines.threads import Emit, OwnerThread

log = logging.getLogger(__name__)

_PAUSING = tuple(",.;:!?…，。；：！？、\n")
_NEUTRAL: EmotionVector = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class EspeakEngine:
    """Engine over one private copy of espeak-ng."""

    def __init__(self) -> None:
        """
        Raises:
            EngineUnavailable: espeak-ng is not installed or does not load.
        """
        self._library = EspeakLibrary()
        self._thread = OwnerThread("espeak")
        self.info = EngineInfo(
            name="espeak",
            model_version=self._library.version,
            sample_rate_hz=self._library.sample_rate_hz,
            # No SPEED: its own rate is up to a third beside the ratio asked for, as pauses follow it in another way.
            capabilities=frozenset(
                {
                    Capability.TEXT_TO_SPEECH,
                    Capability.MULTI_LANGUAGE,
                    Capability.EMOTION_CONTROL,
                    Capability.EMOTION_VECTOR,
                    Capability.EMOTION_TEXT,
                    Capability.EMOTION_RANDOM,
                }
            ),
            emotion_text_by="words",
        )

    async def warm(self) -> None:
        """Load both languages' dictionaries."""
        for text in ("一", "a"):
            await self._thread.call(self._speak, text, PRESETS[0].timbre, lambda _: True)

    def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Chunks of 100 ms, as `Engine.stream`."""

        def produce(emit: Emit[AudioChunk]) -> None:
            if request.generation != Generation():
                log.info("espeak draws no samples: the generation parameters are ignored")
            timbre = _felt(preset_for(request.voice.path).timbre, request.emotion, request.generation.seed)
            self._speak(request.text, timbre, lambda chunk: emit(AudioChunk(to_float32(chunk))))

        return self._thread.iterate(produce)

    def _speak(self, text: str, timbre: Timbre, receive: Callable[[IntSamples], bool]) -> bool:
        parts = list(runs(text))
        for number, (language, part) in enumerate(parts, 1):
            # A pause belongs to punctuation, not to a change of language in the middle of a sentence.
            pause = number < len(parts) and part.rstrip(" ").endswith(_PAUSING)
            if not self._library.speak(part, language, timbre, receive, pause=pause):
                return False
        return True

    async def aclose(self) -> None:
        """End the thread, free the library."""
        await self._thread.aclose()
        self._library.close()


def _felt(timbre: Timbre, emotion: Emotion | None, seed: int | None) -> Timbre:
    if emotion is None:
        return timbre
    return with_emotion(timbre, _vector(emotion), emotion.weight, Random(seed) if emotion.random else None)


def _vector(emotion: Emotion) -> EmotionVector:
    if emotion.reference is not None:
        log.warning("espeak takes no emotion from a recording: %s is ignored", emotion.reference.name)
    if emotion.text is None:
        return emotion.vector or _NEUTRAL
    found = vector_from_words(emotion.text)
    if found is None:
        log.warning("emotion ignored: espeak knows no emotion in the description")
    return found or _NEUTRAL
