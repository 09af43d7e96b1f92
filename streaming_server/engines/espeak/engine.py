"""The espeak engine: speech in many languages at a thousand times real time, in eleven voices, without cloning."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from random import Random

import anyio

from streaming_server.audio.pcm import to_float32
from streaming_server.domain import (
    AudioChunk,
    Capability,
    Emotion,
    Generation,
    Mark,
    Pronunciation,
    SpeechRequest,
    matching_language,
    pronunciations_within,
)
from streaming_server.engines.base import EngineInfo
from streaming_server.engines.chinese_numbers import as_spoken
from streaming_server.engines.emotion_words import vector_of
from streaming_server.engines.espeak.bounds import bounded
from streaming_server.engines.espeak.emotion import with_emotion
from streaming_server.engines.espeak.languages import ALIASES, DEFAULT, UNKNOWN, runs
from streaming_server.engines.espeak.library import Timbre
from streaming_server.engines.espeak.notation import PHONEME_LANGUAGE, phoneme_names
from streaming_server.engines.espeak.process import EspeakProcess, SpokenWord, Utterance
from streaming_server.engines.espeak.voices import BY_NAME, PRESETS, VOICES, nearest_preset
from streaming_server.engines.pronunciations import masked
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
                    Capability.PHONEMES,
                }
            ),
            emotion_text_by="words",
            presets=VOICES,
            languages=(*self._process.languages, *ALIASES),
            max_concurrency=None,
        )

    async def warm(self) -> None:
        """Speak once, as `Engine.warm`."""
        async with aclosing(self._process.speak(utterances("a", PRESETS[0].timbre))) as chunks:
            async for _ in chunks:
                pass

    def reserve(self, requests: int) -> None:
        """As `Batching.reserve`."""
        self._process.reserve(requests)

    def has_room(self, active: int) -> bool:
        """As `Batching.has_room`: a thousand listeners would not keep it busy."""
        return True

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Chunks of 100 ms to 1.4 s, as `Engine.stream`."""
        if request.generation != Generation(seed=request.generation.seed):
            log.info("generation parameters ignored: engine=espeak")
        voice = request.voice
        preset = BY_NAME[voice.name] if voice.is_preset else await self._presets.find(voice.path)
        timbre = _with_emotion(preset.timbre, request.emotion, request.generation.seed)
        tag = matching_language(request.language, self.info.languages) or ""
        arguments = request.text, timbre, ALIASES.get(tag, tag), request.pronunciations
        if len(request.text) > _MAX_ON_LOOP:
            parts, places = await anyio.to_thread.run_sync(prepared, *arguments)
        else:
            parts, places = prepared(*arguments)
        async with aclosing(self._process.speak(parts)) as chunks:
            async for chunk in chunks:
                marks = places.marks(chunk.words, self.info.sample_rate_hz)
                yield AudioChunk(to_float32(chunk.samples), marks)

    async def aclose(self) -> None:
        """End the child process."""
        await self._process.aclose()


class _Places:
    """Finds the words of utterances in the text that these are made of."""

    def __init__(self, places: Sequence[Sequence[int]]) -> None:
        """``places``: for each utterance the index of each of its characters in the text."""
        self._places = places
        self._last = -1

    def marks(self, words: Iterable[SpokenWord], rate_hz: int) -> list[Mark]:
        found = []
        for word in words:
            places = self._places[word.utterance]
            character = places[min(word.character, len(places) - 1)]
            if character > self._last:  # a number is several words in one place
                found.append(Mark(character, word.sample / rate_hz))
                self._last = character
        return found


def utterances(text: str, timbre: Timbre) -> list[Utterance]:
    """As `prepared`, in the language of each script."""
    return prepared(text, timbre)[0]


def prepared(
    text: str, timbre: Timbre, language: str = "", given: Sequence[Pronunciation] = ()
) -> tuple[list[Utterance], _Places]:
    """The text in pieces of one language each, within the bounds of espeak-ng.

    Args:
        text: the text.
        timbre: of all utterances.
        language: an espeak-ng voice for the scripts that it reads; empty for that of each script.
        given: pronunciations of parts of the text.
    """
    parts = list(_parts(masked(text, given), language, given))
    found, all_places = [], []
    for number, (spoken_language, begin, end) in enumerate(parts, 1):
        own = pronunciations_within(given, begin, end)
        part = text[begin:end]
        is_mandarin = spoken_language == "cmn" and not own
        content, places = _mandarin(part, begin) if is_mandarin else _spelled(part, begin, own)
        # A pause belongs to punctuation, not to a change of language in the middle of a sentence.
        pause = number < len(parts) and text[begin:end].rstrip(" ").endswith(_PAUSING)
        found.append(Utterance(content, spoken_language, timbre, pause, has_phonemes=bool(own)))
        all_places.append(places)
    return found, _Places(all_places)


def _parts(text: str, language: str, given: Sequence[Pronunciation]) -> Iterator[tuple[str, int, int]]:
    """Language, begin and end of each part; outside English, given phonemes are a part of their own."""
    begin = 0
    for found, part in runs(text, language):
        spoken_language = DEFAULT if found == UNKNOWN else found  # espeak-ng names the letters
        end = begin + len(part)
        for each in given if not spoken_language.startswith("en") else ():
            if begin <= each.start and each.end <= end:
                if begin < each.start:
                    yield spoken_language, begin, each.start
                yield PHONEME_LANGUAGE, each.start, each.end
                begin = each.end
        if begin < end:
            yield spoken_language, begin, end
        begin = end


def _spelled(part: str, begin: int, given: Sequence[Pronunciation]) -> tuple[str, Sequence[int]]:
    """A part as espeak-ng can take it, and the index of each of its characters in the whole text."""
    if not given:
        content = bounded(part)
        # What was changed to fit the bounds is known by its beginning alone.
        is_same = len(content) == len(part)
        return content, range(begin, begin + len(part)) if is_same else [begin] * len(content)
    content, places, at = "", list[int](), 0
    for each in given:
        names = phoneme_names(each.ipa)
        word = f"[[{names}]]" if names else bounded(part[each.start : each.end])
        before, before_places = _spelled(part[at : each.start].replace("[[", "[ "), begin + at, ())
        content += before + word
        places += [*before_places, *[begin + each.start] * len(word)]
        at = each.end
    behind, behind_places = _spelled(part[at:].replace("[[", "[ "), begin + at, ())
    return content + behind, [*places, *behind_places]


def _mandarin(part: str, begin: int) -> tuple[str, Sequence[int]]:
    """As `_spelled`, with dates, prices and units as they are spoken."""
    spoken, places = as_spoken(part)
    content, bounded_places = _spelled(spoken, 0, ())
    return content, [begin + places[place] for place in bounded_places]


def _with_emotion(timbre: Timbre, emotion: Emotion | None, seed: int | None) -> Timbre:
    if emotion is None:
        return timbre
    return with_emotion(timbre, vector_of(emotion, "espeak"), emotion.weight, Random(seed) if emotion.random else None)
