"""The hibari engine: neural English in thirteen voices, other scripts by espeak-ng, without cloning."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, replace
from random import Random

import anyio
import numpy as np

from streaming_server.domain import (
    AudioChunk,
    Capability,
    Emotion,
    FloatSamples,
    Generation,
    Mark,
    Pronunciation,
    SpeechRequest,
    Voice,
    matching_language,
    pronunciations_within,
)
from streaming_server.engines.base import Batching, Engine, EngineInfo
from streaming_server.engines.emotion_words import vector_of
from streaming_server.engines.espeak.languages import ALIASES, languages_of, runs
from streaming_server.engines.espeak.voices import nearest_preset
from streaming_server.engines.hibari.emotion import with_emotion
from streaming_server.engines.hibari.joins import Levelled, silence, sounding
from streaming_server.engines.hibari.network import FRAME_S, SAMPLE_RATE_HZ, Frames, Network
from streaming_server.engines.hibari.rendering import Timbre, render
from streaming_server.engines.hibari.voices import VOICES, Speakers
from streaming_server.engines.load import Load
from streaming_server.engines.onnx.alignment import begun_once, phoneme_words, spans_of_words
from streaming_server.engines.onnx.clauses import clauses, ended
from streaming_server.engines.onnx.english import EnglishPhonemes
from streaming_server.engines.pronunciations import converted, in_misaki_alphabet, masked
from streaming_server.engines.threads import WAITING, OwnerThread, Steps
from streaming_server.engines.urgency import UrgentFirst
from streaming_server.errors import EngineUnavailable, InvalidRequest
from streaming_server.segmentation import ends_line, sentences
from streaming_server.text import end_pause_s, pause_s

log = logging.getLogger(__name__)

_ENGLISH = "en-us"
_MAX_CLAUSE_PHONEMES = 150
"""Maximum length of a clause, about ten seconds of speech: the network cannot be interrupted within a clause."""
_OPENING_PHONEMES = 40
"""A longer first sentence is split into clauses."""
_MAX_ON_LOOP_CHARACTERS = 2000
_LEAD_S = 0.02
_SHOWN_CHARACTERS = 20


@dataclass(frozen=True, slots=True)
class _Clause:
    phonemes: str
    frames: Frames
    """The audible frames."""
    marks: list[Mark]
    """Words relative to the first audible frame."""


class HibariEngine:
    """Engine with hibari's network, and espeak-ng for other scripts."""

    def __init__(self, espeak: Engine | None = None) -> None:
        """``espeak``: synthesises text that is not in Latin script; None rejects such text.

        Raises:
            EngineUnavailable: the installed version of hibari-tts is not supported.
        """
        self._network = Network()
        self._espeak = espeak
        self._english: EnglishPhonemes | None = None
        self._speakers = Speakers()
        self._thread = OwnerThread("hibari", duration_s=lambda chunk: chunk.samples.size / SAMPLE_RATE_HZ)
        self._ahead = UrgentFirst("hibari-network")
        self._network_load, self._rendering_load = Load(), Load()
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
                    Capability.PHONEMES,
                }
                | ({Capability.MULTI_LANGUAGE} if espeak is not None else set())
            ),
            emotion_text_by="words",
            presets=VOICES,
            languages=("en", *(espeak.info.languages if espeak is not None else ())),
            max_concurrency=None,
        )

    async def warm(self) -> None:
        """Load the lexicon and the networks and synthesise once."""
        self._english = await self._thread.call(EnglishPhonemes)
        async with aclosing(self._speak("Ready, steady.", Timbre(), np.random.default_rng(0), opening=True)) as chunks:
            async for _ in chunks:
                pass
        if self._espeak is not None:
            await self._espeak.warm()

    def reserve(self, requests: int) -> None:
        """As `Batching.reserve`."""
        if isinstance(self._espeak, Batching):
            self._espeak.reserve(requests)

    def has_room(self, active: int) -> bool:
        """As `Batching.has_room`."""
        return self._network_load.has_room(active) and self._rendering_load.has_room(active)

    def refusal(self, request: SpeechRequest) -> str:
        if self._espeak is not None:
            return ""
        hidden = masked(request.text, request.pronunciations)
        if languages_of(hidden) <= {_ENGLISH}:
            return ""
        foreign = next(part for language, part in runs(hidden) if language != _ENGLISH).strip()
        return (
            f"has characters that the hibari engine cannot speak, {foreign[:_SHOWN_CHARACTERS]!r}: it speaks Latin "
            "script as English, and other scripts only where espeak-ng is installed (scripts/install espeak)"
        )

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Yield chunks of 0.15 s at first and up to 0.6 s later.

        Raises:
            InvalidRequest: the text is in another script and espeak-ng is not installed.
        """
        if request.generation != Generation(seed=request.generation.seed):
            log.info("generation parameters ignored: engine=hibari")
        if problem := self.refusal(request):
            raise InvalidRequest(f"text {problem}", "text")
        given = request.pronunciations
        language = matching_language(request.language, self.info.languages) or ""
        chosen = "" if language.startswith("en") else ALIASES.get(language, language)
        hidden = masked(request.text, given)
        if len(request.text) > _MAX_ON_LOOP_CHARACTERS:
            parts = await anyio.to_thread.run_sync(_parts, hidden, chosen)
        else:
            parts = _parts(hidden, chosen)
        speaker = await self._speakers.find(request.voice)
        timbre = _with_emotion(speaker.timbre, request.emotion, request.generation.seed)
        other_voice = Voice(nearest_preset(speaker.median_pitch_hz).name, is_preset=True)
        rng = _generator(request.generation.seed)
        level = Levelled(timbre.gain_db - speaker.timbre.gain_db)
        is_silent = True
        characters = samples = 0  # before this part
        for number, (language, part) in enumerate(parts, 1):
            own = pronunciations_within(given, characters, characters + len(part))
            spoken = request.text[characters : characters + len(part)]
            if not ends_line(request.text, characters + len(spoken.rstrip())):
                spoken = spoken.rstrip("\r\n")  # the sentence continues in the next line, in another script
            if language == _ENGLISH:
                chunks = self._speak(spoken, timbre, rng, own, opening=is_silent)
            else:
                other = replace(request, text=spoken, voice=other_voice, pronunciations=own)
                chunks = self._speak_other(other, level)
            before_s = samples / SAMPLE_RATE_HZ
            async with aclosing(chunks):
                async for chunk in chunks:
                    is_silent = False
                    samples += chunk.samples.size
                    marks = [
                        replace(mark, character=characters + mark.character, time_s=before_s + mark.time_s)
                        for mark in chunk.marks
                    ]
                    yield AudioChunk(chunk.samples, marks)
            if number < len(parts) and not is_silent:
                # espeak-ng measures only when words begin
                end = Mark(characters + len(spoken.rstrip()), samples / SAMPLE_RATE_HZ)
                samples += (pause := silence(end_pause_s(spoken))).size
                yield AudioChunk(pause, [] if language == _ENGLISH else [end])
            characters += len(part)
        if is_silent:  # the text has no pronounceable characters; most players fail on empty files
            yield AudioChunk(silence(pause_s(".")))

    def _speak(
        self,
        text: str,
        timbre: Timbre,
        rng: np.random.Generator,
        given: Sequence[Pronunciation] = (),
        *,
        opening: bool,
    ) -> AsyncGenerator[AudioChunk, None]:
        return self._thread.interleave(lambda _: self._spoken(text, timbre, rng, given, opening))

    def _spoken(
        self,
        text: str,
        timbre: Timbre,
        rng: np.random.Generator,
        given: Sequence[Pronunciation],
        opening: bool,
    ) -> Steps[AudioChunk]:
        """Render each clause while the network works on the next."""
        clause_frames = self._clause_frames(text, given, opening)
        coming = self._next_of(clause_frames)
        try:
            pause: FloatSamples = silence(_LEAD_S if opening else 0)
            samples, played_s = 0, 0.0
            while True:
                while not coming.done():
                    yield WAITING
                if (clause := coming.result()) is None:
                    return
                clause_s = clause.frames.f0_hz.size * FRAME_S
                coming = self._next_of(clause_frames, max(played_s, time.monotonic()) + clause_s)
                begin_s = (samples + pause.size) / SAMPLE_RATE_HZ
                marks = [Mark(mark.character, begin_s + mark.time_s / timbre.rate) for mark in clause.marks]
                began_s = time.monotonic()
                for piece in render(clause.frames, timbre, rng):
                    self._rendering_load.add(time.monotonic() - began_s, piece.size / SAMPLE_RATE_HZ)
                    chunk = AudioChunk(np.concatenate([pause, piece]), marks)
                    samples += chunk.samples.size
                    played_s = max(played_s, time.monotonic()) + chunk.samples.size / SAMPLE_RATE_HZ
                    yield chunk
                    pause, marks, began_s = pause[:0], [], time.monotonic()
                pause = silence(pause_s(clause.phonemes) / timbre.rate)
        finally:
            _settle(coming)

    def _next_of(self, clause_frames: Iterator[_Clause], needed_s: float = 0.0) -> Future[_Clause | None]:
        coming = self._ahead.submit(needed_s, next, clause_frames, None)
        coming.add_done_callback(lambda _: self._thread.wake())
        return coming

    def _clause_frames(self, text: str, given: Sequence[Pronunciation], opening: bool) -> Iterator[_Clause]:
        if self._english is None:
            raise EngineUnavailable("the hibari engine is not loaded")
        hidden, at, began_s = masked(text, given), 0, time.monotonic()
        for sentence in sentences(hidden):
            at = hidden.index(sentence, at)
            own = pronunciations_within(given, at, at + len(sentence))
            phonemes = converted(text[at : at + len(sentence)], own, self._english, _spelled, is_english=True)
            phonemes = ended(phonemes, text, at, at + len(sentence))
            # One word each, as in the phonemes.
            whole = masked(text[at : at + len(sentence)], own, "a")
            words = spans_of_words(whole, len(phoneme_words(phonemes)), self._english)
            spans = iter(begun_once(words, at))
            for clause in clauses(phonemes, _MAX_CLAUSE_PHONEMES, _OPENING_PHONEMES if opening else None):
                frames = self._network.run(clause)
                kept = sounding(frames)
                marks = _marks(clause, frames, kept.start, spans)
                if kept.stop > kept.start:
                    opening = False
                    self._network_load.add(time.monotonic() - began_s, (kept.stop - kept.start) * FRAME_S)
                    yield _Clause(clause, frames.take(kept), marks)
                    began_s = time.monotonic()
            at += len(sentence)

    async def _speak_other(self, request: SpeechRequest, level: Levelled) -> AsyncGenerator[AudioChunk, None]:
        if self._espeak is None:
            return
        fitted = level.joined(self._espeak.info.sample_rate_hz)
        async with aclosing(self._espeak.stream(request)) as chunks:
            async for chunk in chunks:
                samples = fitted.push(chunk.samples)
                if samples.size or chunk.marks:
                    yield AudioChunk(samples, chunk.marks)
        if (samples := fitted.finish()).size:
            yield AudioChunk(samples)

    async def aclose(self) -> None:
        """Stop the threads and espeak-ng."""
        await self._thread.aclose()
        self._ahead.close()
        if self._espeak is not None:
            await self._espeak.aclose()


def _generator(seed: int | None) -> np.random.Generator:
    """The generator of a seed, which may be negative."""
    return np.random.default_rng(None if seed is None else seed % 2**64)


def _parts(text: str, language: str) -> list[tuple[str, str]]:
    return list(runs(text, language))


def _spelled(ipa: str) -> str:
    return in_misaki_alphabet(ipa, _ENGLISH)


def _marks(phonemes: str, frames: Frames, first: int, spans: Iterator[tuple[int | None, int]]) -> list[Mark]:
    """Return the times of the words of a clause, relative to frame ``first``, at the network's own rate.

    Args:
        phonemes: phonemes of the clause.
        frames: all frames of the clause.
        first: the first audible frame.
        spans: spans of the words in the text, one per word of the phonemes, as `begun_once` returns them.
    """
    if frames.ends is None:
        return []
    times: dict[int, float] = {}
    for (begin, end), (character, behind) in zip(phoneme_words(phonemes), spans, strict=False):
        if character is not None:
            times.setdefault(character, max(int(frames.ends[begin]) - first, 0) * FRAME_S)
        times[behind] = max(int(frames.ends[end]) - first, 0) * FRAME_S
    return [Mark(character, time_s) for character, time_s in sorted(times.items())]


def _settle(work: Future[_Clause | None]) -> None:
    """Wait for cancelled work, after which the engine is idle."""
    if not work.cancel():
        work.exception()


def _with_emotion(timbre: Timbre, emotion: Emotion | None, seed: int | None) -> Timbre:
    if emotion is None:
        return timbre
    return with_emotion(timbre, vector_of(emotion, "hibari"), emotion.weight, Random(seed) if emotion.random else None)
