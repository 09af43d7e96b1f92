"""The kokoro engine: splits sentences into pieces, each synthesised by one call of the network."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from onnxruntime import RunOptions

from streaming_server.audio.prosody import ProsodyFilter
from streaming_server.domain import (
    AudioChunk,
    Capability,
    FloatSamples,
    Generation,
    Mark,
    Pronunciation,
    SpeechRequest,
    Voice,
    matching_language,
    pronunciations_within,
)
from streaming_server.engines.base import EngineInfo
from streaming_server.engines.espeak.languages import languages_of, runs
from streaming_server.engines.kokoro.folder import find_models, find_voices, problem
from streaming_server.engines.kokoro.foreign import ESPEAK_VOICES, EspeakPhonemes, missing_espeak
from streaming_server.engines.kokoro.network import SAMPLE_RATE_HZ, Network, Speech, available_device
from streaming_server.engines.kokoro.phonemes import (
    CONVERTERS,
    FIRST_PIECE,
    VOCABULARY,
    Convert,
    missing_japanese,
    next_limit,
    split,
    tokens,
)
from streaming_server.engines.kokoro.voices import LATIN, OPENAI, VoiceStyles, latin_language, presets, voice_of_pitch
from streaming_server.engines.load import Load
from streaming_server.engines.onnx.alignment import begun_once, phoneme_words, spans_of_words
from streaming_server.engines.onnx.clauses import ended
from streaming_server.engines.pronunciations import converted, in_misaki_alphabet, masked
from streaming_server.engines.recording_voices import RecordingVoices
from streaming_server.engines.threads import OwnerThread, Steps
from streaming_server.errors import EngineUnavailable, InvalidRequest
from streaming_server.segmentation import sentences
from streaming_server.text import pause_s

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "fp16", "int8"]
_PREFERRED = {"cpu": ("int8", "fp32", "fp16"), "cuda": ("fp16", "fp32", "int8")}
_QUIET = 0.005
"""Amplitude below which the edge of a piece counts as silence."""
_EDGE_S = 0.02
"""Silence kept at both ends of a piece to avoid clicks."""
_CHUNK_S = 0.25
_MAX_NETWORK_SPEED = 1.5
"""Above it the network is too slow, as each phoneme lasts at least 25 ms; its samples are stretched instead."""
_SHOWN_CHARACTERS = 20
_LANGUAGES: Mapping[str, str] = {
    "": "", "en": "en-us", "es": "es", "fr": "fr", "hi": "hi", "it": "it", "ja": "ja", "pt": "pt-br", "zh": "cmn",
}  # fmt: skip
"""Languages of espeak-ng by BCP 47 tag."""
_UNDIVIDED = frozenset({"cmn", "ja"})


Word = tuple[tuple[int, int], tuple[int | None, int]]
"""Begin and end of a word in the phonemes of its piece, and in the text as `begun_once` returns them."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """The input of one call of the network."""

    phonemes: str
    language: str
    words: tuple[Word, ...] = ()


class KokoroEngine:
    """Engine for one Kokoro model."""

    def __init__(self, *, model_dir: Path, device: str = "auto", precision: Precision = "auto") -> None:
        """
        Raises:
            EngineUnavailable: the model, its voices or the device cannot be used.
        """
        models, voices = find_models(model_dir), find_voices(model_dir)
        if what := problem(model_dir):
            raise EngineUnavailable(what)
        if precision != "auto" and precision not in models:
            raise EngineUnavailable(
                f'MODEL_DIR "{model_dir}" has no {precision} model; it has {", ".join(sorted(models))}'
            )
        self._network, chosen = _load(models, device, precision)
        self._voices = voices
        self._styles = VoiceStyles(voices)
        self._recordings = RecordingVoices([*OPENAI.values()], voice_of_pitch)
        self._converters: dict[str, Convert] = {}
        self._espeak: EspeakPhonemes | None = None
        # By language, found once: a search of the file system for each part of a text would hold up the event loop.
        self._missing = {"ja": missing_japanese()} | dict.fromkeys(ESPEAK_VOICES, missing_espeak())
        self._thread = OwnerThread("kokoro", duration_s=lambda chunk: chunk.samples.size / SAMPLE_RATE_HZ)
        self._load = Load()
        optional = {
            Capability.SEED: self._network.is_repeatable,
            Capability.SPEED: self._network.has_speed,
        }
        self.info = EngineInfo(
            name="kokoro",
            model_version="1.0",
            sample_rate_hz=SAMPLE_RATE_HZ,
            device=self._network.device,
            precision=chosen,
            model_dir=str(model_dir),
            capabilities=frozenset(
                {
                    Capability.TEXT_TO_SPEECH,
                    Capability.MULTI_LANGUAGE,
                    Capability.TOKEN_STREAMING,
                    Capability.PHONEMES,
                    *(capability for capability, has_it in optional.items() if has_it),
                }
            ),
            presets=presets(voices),
            languages=tuple(filter(None, _LANGUAGES)),
            blends=True,
            max_concurrency=None,
        )

    async def warm(self) -> None:
        """Load English and Mandarin and run the network once."""
        loop = asyncio.get_running_loop()
        for language in ("en-us", "cmn"):
            await self._thread.call(self._converter, language, loop)
        style = self._styles.style(next(iter(self._voices)), "en-us")
        await self._thread.call(self._run, tokens("ˈA."), style.of(3), 1.0, RunOptions())

    def reserve(self, requests: int) -> None:
        """As `Batching.reserve`; requests share the network."""

    def has_room(self, active: int) -> bool:
        """As `Batching.has_room`."""
        return self._load.has_room(active)

    def refusal(self, request: SpeechRequest) -> str:
        language, hidden = _language(request), masked(request.text, request.pronunciations)
        named = "" if language in LATIN else language
        found = languages_of(hidden, named)
        if unknown := found - CONVERTERS.keys() - ESPEAK_VOICES.keys():
            foreign = next(part for name, part in runs(hidden, named) if name in unknown).strip()
            return (
                f"has characters that the kokoro engine cannot speak, {foreign[:_SHOWN_CHARACTERS]!r}: it speaks Latin "
                "script in the language of the voice, Mandarin, Japanese, and Hindi"
            )
        if "en-us" in found:
            by_voice = latin_language(request.voice.name) if request.voice.is_preset else ""
            found.add(language if language in LATIN else by_voice)
        return next(filter(None, (self._missing.get(name) for name in sorted(found))), "")

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Yield chunks of 0.25 s. A text without pronounceable characters gives a short silence.

        Raises:
            InvalidRequest: the text has characters of an unsupported language.
        """
        if request.generation != Generation(seed=request.generation.seed):
            log.info("generation parameters ignored: engine=kokoro")
        if problem := self.refusal(request):
            raise InvalidRequest(f"text {problem}", "text")
        voice = await self._voice(request.voice)
        stop, loop = RunOptions(), asyncio.get_running_loop()

        def terminate() -> None:
            stop.terminate = True

        step = round(_CHUNK_S * SAMPLE_RATE_HZ)
        pieces = self._thread.interleave(lambda _: self._spoken(request, voice, loop, stop), stop=terminate)
        async with aclosing(pieces):
            async for piece in pieces:
                for at in range(0, piece.samples.size, step):
                    yield AudioChunk(piece.samples[at : at + step], piece.marks if not at else ())

    def _spoken(
        self, request: SpeechRequest, voice: str, loop: asyncio.AbstractEventLoop, stop: RunOptions
    ) -> Steps[AudioChunk]:
        """Yield each piece as a whole: its listener has it before another request has a turn."""
        speed = request.speed if self._network.has_speed else 1.0
        made = 0  # samples
        pause = _silence(0)  # after the previous piece
        for piece in self._pieces(request.text, voice, loop, _language(request), request.pronunciations):
            ids = tokens(piece.phonemes)
            style = self._styles.style(voice, piece.language).of(len(ids))
            if pause.size:
                yield AudioChunk(pause)
            made += pause.size
            speech = self._run(ids, style, min(speed, _MAX_NETWORK_SPEED), stop)
            if stop.terminate:
                return
            if speed > _MAX_NETWORK_SPEED:
                speech = _faster(speech, speed / _MAX_NETWORK_SPEED)
            kept = _sounding(speech.samples)
            marks = _marks(piece, speech, kept, made)
            samples = speech.samples[kept]
            made += samples.size
            pause = _silence(pause_s(piece.phonemes) / speed)
            if samples.size:
                yield AudioChunk(samples, marks)
        if not made:  # most players fail on empty files
            yield AudioChunk(_silence(pause_s(".")))

    def _run(self, ids: Sequence[int], style: FloatSamples, speed: float, stop: RunOptions) -> Speech:
        began_s = time.monotonic()
        speech = self._network.run(ids, style, speed, stop)
        if not stop.terminate:
            self._load.add(time.monotonic() - began_s, speech.samples.size / SAMPLE_RATE_HZ)
        return speech

    async def aclose(self) -> None:
        """Stop the thread and espeak-ng."""
        await self._thread.aclose()
        if self._espeak is not None:
            await self._espeak.aclose()

    async def _voice(self, voice: Voice) -> str:
        """Return the name of a voice or a blend; for a recording the name of the voice that replaces it."""
        if voice.is_preset:
            return voice.name
        found = await self._recordings.find(voice.path)
        return found if found in self._voices else next(iter(self._voices))

    def _pieces(
        self,
        text: str,
        voice: str,
        loop: asyncio.AbstractEventLoop,
        language: str = "",
        given: Sequence[Pronunciation] = (),
    ) -> Iterator[_Piece]:
        """Split the text into pieces of increasing length.

        Args:
            text: the text.
            voice: a voice or a blend.
            loop: as for `EspeakPhonemes.convert`.
            language: of the text, as an espeak-ng voice; empty for that of the voice or the script.
            given: pronunciations of parts of the text.

        Raises:
            EngineUnavailable: a language needs espeak-ng, which does not load.
        """
        latin = language if language in LATIN else latin_language(voice)
        found = runs(masked(text, given), "" if language in LATIN else language)
        parts = [(latin if name == "en-us" else name, part) for name, part in found]
        limit, start = FIRST_PIECE, 0
        for name, part in parts:
            convert, at = self._converter(name, loop), 0
            for hidden in sentences(part):
                at = part.index(hidden, at)
                begin, end = start + at, start + at + len(hidden)
                sentence, own = text[begin:end], pronunciations_within(given, begin, end)
                spell, is_english = partial(in_misaki_alphabet, language=name), name.startswith("en")
                phonemes = converted(sentence, own, convert, spell, is_english=is_english).strip()
                phonemes = ended(phonemes, text, begin, end)
                whole = masked(sentence, own, "a")  # one word each, as in the phonemes
                spans = iter(begun_once(spans_of_words(whole, len(phoneme_words(phonemes)), convert), begin))
                for piece in split(phonemes, limit) if tokens(phonemes) else ():
                    yield _Piece(piece, name, tuple(zip(phoneme_words(piece), spans, strict=False)))
                    limit = next_limit(limit)
                at += len(hidden)
            start += len(part)

    def _converter(self, language: str, loop: asyncio.AbstractEventLoop) -> Convert:
        if language in ESPEAK_VOICES:
            self._espeak = self._espeak or EspeakPhonemes()
            return partial(self._espeak.convert, language=language, loop=loop)
        if language not in self._converters:
            self._converters[language] = CONVERTERS[language]()
        return self._converters[language]


def _load(models: Mapping[str, Path], device: str, precision: Precision) -> tuple[Network, str]:
    """Return the network and its precision, on the CPU where ``auto`` cannot use CUDA.

    Raises:
        EngineUnavailable: the model or the device cannot be used.
    """
    found = available_device(device)
    wanted = (precision,) if precision != "auto" else _PREFERRED[found]
    chosen = next(name for name in wanted if name in models)
    network = Network(models[chosen], found)
    if network.device == found:
        return network, chosen
    reason = "ONNX Runtime cannot load CUDA or cuDNN, or finds no GPU; its own message has the reason"
    if device == "cuda":
        raise EngineUnavailable(f"DEVICE=cuda: {reason}")
    log.warning("GPU not used: %s", reason)
    return _load(models, "cpu", precision)


def _language(request: SpeechRequest) -> str:
    """The language that a request chooses, as an espeak-ng voice; empty for that of the voice or the script."""
    return _LANGUAGES[matching_language(request.language, _LANGUAGES.keys()) or ""]


def _silence(duration_s: float) -> FloatSamples:
    return np.zeros(round(duration_s * SAMPLE_RATE_HZ), np.float32)


def _faster(speech: Speech, tempo: float) -> Speech:
    stretch = ProsodyFilter(SAMPLE_RATE_HZ, tempo, pitch=1.0, gain_db=0.0)
    samples = np.concatenate([stretch.push(speech.samples), stretch.finish()])
    return Speech(samples, None if speech.ends is None else (speech.ends / tempo).astype(np.int64))


def _sounding(samples: FloatSamples) -> slice:
    """Return the range without the silence at both ends."""
    loud = np.flatnonzero(np.abs(samples) > _QUIET)
    if not loud.size:
        return slice(0, 0)
    edge = round(_EDGE_S * SAMPLE_RATE_HZ)
    return slice(max(int(loud[0]) - edge, 0), int(loud[-1]) + edge)


def _marks(piece: _Piece, speech: Speech, kept: slice, before: int) -> list[Mark]:
    """Return when the words of a piece begin and end.

    Where the network does not tell, its phonemes share the time equally, and the marks are not measured. Nor are those
    of languages whose words are not divided by blanks: their phonemes cannot be assigned to characters with certainty.

    Args:
        piece: the piece.
        speech: of the piece.
        kept: the range of its samples that is heard.
        before: number of samples before it.
    """
    last = np.cumsum([0, *(phoneme in VOCABULARY for phoneme in piece.phonemes)])
    ends = speech.ends
    if ends is None:
        ends = np.linspace(kept.start, kept.stop, last[-1] + 1).astype(np.int64)
    is_measured = speech.ends is not None and piece.language not in _UNDIVIDED
    times: dict[int, int] = {}
    for (begin, end), (first, behind) in piece.words:
        if first is not None:
            times.setdefault(first, int(ends[last[begin]]))
        times[behind] = int(ends[last[end]])
    return [
        Mark(
            character,
            (before + min(max(sample, kept.start), kept.stop) - kept.start) / SAMPLE_RATE_HZ,
            is_measured=is_measured,
        )
        for character, sample in sorted(times.items())
    ]
