"""The data types of the server: requests, voices, emotions and audio. Frozen dataclasses without I/O."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

_WEIGHT = re.compile(r"\d{1,6}(\.\d{1,6})?", re.ASCII)

FloatSamples = npt.NDArray[np.float32]
"""Mono samples in -1.0 … 1.0, shape ``(n,)``: the output of engines."""

IntSamples = npt.NDArray[np.int16]
"""Mono signed 16-bit samples, shape ``(n,)``: the input of encoders."""


class Capability(StrEnum):
    """An optional feature of an engine."""

    TEXT_TO_SPEECH = "text_to_speech"
    VOICE_CLONING = "voice_cloning"
    """Synthesises in the voice of a recording."""
    MULTI_LANGUAGE = "multi_language"
    GENERATION_PARAMETERS = "generation_parameters"
    """Uses the sampling parameters of `Generation`."""
    TOKEN_STREAMING = "token_streaming"
    """Yields audio before a sentence is complete."""
    SEED = "seed"
    """The same request with the same seed gives the same samples."""
    SPEED = "speed"
    EMOTION_CONTROL = "emotion_control"
    """Any of the four below."""
    EMOTION_VECTOR = "emotion_vector"
    EMOTION_TEXT = "emotion_text"
    EMOTION_REFERENCE = "emotion_reference"
    EMOTION_RANDOM = "emotion_random"
    DIALOGUE = "dialogue"
    """Synthesises a complete script."""
    SCENE = "scene"
    SMART_VOICE = "smart_voice"
    """Chooses the speakers' voices itself."""
    PHONEMES = "phonemes"
    """Uses the pronunciations of a request."""


class Granularity(StrEnum):
    """The granularity of streaming."""

    TOKEN = "token"
    """Audio while the model decodes, with a single beam."""
    SENTENCE = "sentence"
    """One complete sentence at a time; ``num_beams`` applies."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Sampling parameters of autoregressive models; other engines ignore them."""

    do_sample: bool = True
    top_p: float = 0.95
    top_k: int = 30
    temperature: float = 1.2
    length_penalty: float = 0.0
    num_beams: int = 3
    repetition_penalty: float = 10.0
    max_mel_tokens: int = 600
    """Maximum number of audio codes of one segment."""
    max_text_tokens_per_sentence: int = 120
    """Maximum length of a segment, in text tokens; longer sentences are split."""
    seed: int | None = None
    ras_window: int = 7
    """Repetition-aware sampling: window in codes; 0 disables it."""
    ras_repeats: int = 2
    """Repetition-aware sampling: a code that occurs more often in the window is resampled."""
    context_pieces: int | None = 2
    """Number of previous pieces of a script in the model's context; None: all."""
    is_sampling_given: bool = field(default=False, compare=False)
    """The client has chosen ``temperature`` or ``top_k``, even if the values are these defaults. Otherwise a model with
    other defaults uses its own."""


Gender = Literal["male", "female"]


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice: a reference recording, or a preset of the engine."""

    name: str
    """Its id: the stem of a file in the reference folder, the id of an upload, or the engine's name of a preset."""
    path: Path = Path()
    """The recording; empty for a preset."""
    index: int | None = None
    """Index in the reference folder; None for other voices."""
    is_preset: bool = False
    title: str = ""
    """Display name; empty if it is ``name``."""
    languages: tuple[str, ...] = ()
    """BCP 47 codes of its languages; empty if it is not specific to languages."""
    gender: Gender | None = None
    """None if unknown."""
    transcript: str = ""
    """What the recording says; empty where that is not known."""


def parse_blend(name: str) -> tuple[tuple[str, float], ...]:
    """Parse a name such as ``a``, ``a+b`` or ``a:0.7+b:0.3`` into voices and weights; the default weight is 1.

    A part whose weight is not a positive number is the name of a voice.
    """
    blend = []
    for part in name.split("+"):
        voice, _, weight = part.strip().partition(":")
        if _WEIGHT.fullmatch(weight) and float(weight) > 0:
            blend.append((voice, float(weight)))
        else:
            blend.append((part.strip(), 1.0))
    return tuple(blend)


_LANGUAGE_NAMES = {
    "auto": "", "arabic": "ar", "chinese": "zh", "dutch": "nl", "english": "en", "french": "fr", "german": "de",
    "hindi": "hi", "italian": "it", "japanese": "ja", "korean": "ko", "portuguese": "pt", "russian": "ru",
    "spanish": "es",
}  # fmt: skip


def language_tag(name: str) -> str:
    """Return the tag for one of some English names of languages, empty for ``auto``; anything else as it is."""
    name = name.strip().lower()
    return _LANGUAGE_NAMES.get(name, name)


def matching_language(tag: str, known: Collection[str]) -> str | None:
    """Return the known language that a BCP 47 tag stands for: itself, or the longest one that the tag begins with."""
    parts = tag.lower().replace("_", "-").split("-")
    return next((found for end in range(len(parts), 0, -1) if (found := "-".join(parts[:end])) in known), None)


EMOTIONS = ("happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm")
"""The order of an `EmotionVector`."""

EmotionVector = tuple[float, float, float, float, float, float, float, float]
"""Strength of each of `EMOTIONS`, 0-1."""


@dataclass(frozen=True, slots=True)
class Emotion:
    """The emotion of a text, from a recording, a vector or a description; without any, the voice's own."""

    reference: Voice | None = None
    """A recording that provides the emotion, not the voice."""
    vector: EmotionVector | None = None
    text: str | None = None
    """A description."""
    weight: float = 1.0
    """Strength, 0-1."""
    random: bool = False
    """Sample the rendering of the emotion for each request; equal for equal ``Generation.seed``."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: more than one source, a vector of another length, or a number outside 0-1.
        """
        if sum(source is not None for source in (self.reference, self.vector, self.text)) > 1:
            raise ValueError("an emotion has one source: a recording, a vector or a text")
        if self.vector is not None and len(self.vector) != len(EMOTIONS):
            raise ValueError(f"an emotion vector must have {len(EMOTIONS)} numbers, not {len(self.vector)}")
        if not all(0 <= value <= 1 for value in (self.weight, *(self.vector or ()))):
            raise ValueError("the weight and the numbers of an emotion vector must be from 0 to 1")


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of one speaker in a dialogue."""

    text: str
    voice: Voice
    speaker: int | None = None
    """The n of ``[SPEAKERn]``; None if the text is not a dialogue."""


Script = tuple[tuple[Turn, ...], ...]
"""A dialogue in pieces. An engine with ``Capability.DIALOGUE`` synthesises the turns of a piece together."""


@dataclass(frozen=True, slots=True)
class Pronunciation:
    """The phonemes of a part of a text."""

    start: int
    end: int
    """Behind its last character."""
    ipa: str
    """In the International Phonetic Alphabet."""


def pronunciations_within(found: Iterable[Pronunciation], begin: int, end: int) -> tuple[Pronunciation, ...]:
    """The pronunciations of a part of a text, with places in this part."""
    return tuple(
        replace(each, start=each.start - begin, end=each.end - begin)
        for each in found
        if begin <= each.start and each.end <= end
    )


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A named place in a text."""

    name: str
    character: int


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text that sounds the same throughout, and the pause behind it."""

    text: str
    pause_s: float = 0.0
    start: int = 0
    """Where its text begins in the text of the request."""
    voice: Voice | None = None
    """None: the request's."""
    rate: float = 1.0
    """Factor of the request's speed."""
    pitch: float = 1.0
    """Factor of the voice's pitch."""
    gain_db: float = 0.0
    """Change of the volume."""
    language: str = ""
    """As ``SpeechRequest.language``; empty: the request's."""
    pronunciations: tuple[Pronunciation, ...] = ()
    """In rising order, without overlap; places within the span's text."""
    bookmarks: tuple[Bookmark, ...] = ()
    """Places within the span's text."""


class TextSignal(Enum):
    """A signal between the pieces of an incremental text."""

    FLUSH = "flush"
    """The text so far is complete and is synthesised without waiting for more."""


@dataclass(frozen=True, slots=True)
class PronouncedText:
    """A piece of an incremental text that has given phonemes."""

    text: str
    ipa: str


if TYPE_CHECKING:
    TextPieces = AsyncGenerator[str | PronouncedText | TextSignal, None]
else:
    TextPieces = object  # jobs are stored through pydantic, which has no schema of an asynchronous generator
"""A text that arrives in pieces. The stream that reads it closes it."""


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A text to be synthesised, in one voice or as a script."""

    text: str
    """As received; empty with ``pieces``. With a script it is only displayed and counted."""
    voice: Voice
    """With a script, the voice of its first turn."""
    generation: Generation = field(default_factory=Generation)
    granularity: Granularity | None = None
    """None: the engine's default."""
    sentence_batch: int = 1
    """Maximum number of sentences decoded together; only with ``Granularity.SENTENCE``."""
    verbose: bool = False
    """Log the details of this request, its text included."""
    request_id: str = ""
    """Identifies the request in the queue."""
    emotion: Emotion | None = None
    """None: the voice's own."""
    speed: float = 1.0
    """Tempo, 0.25-4.0, at constant pitch. Without ``Capability.SPEED`` the stream is stretched before the encoder."""
    script: Script = ()
    """Empty: ``text`` in ``voice``."""
    scene: str = ""
    """Description of the scene, for engines with ``Capability.SCENE``."""
    own_voices: bool = False
    """An engine with ``Capability.SMART_VOICE`` chooses the speakers' voices itself and ignores ``voice``."""
    spans: tuple[Span, ...] = ()
    """The text with its pauses and prosody, of which ``text`` is then the plain form. Engines never see them: each
    gets a request with the text of one span."""
    pieces: TextPieces | None = field(default=None, compare=False, repr=False)
    """The text, if it arrives in pieces; for one stream only, and not with a script. Engines receive one request per
    segment instead."""
    language: str = ""
    """BCP 47 tag of the language in which the text is read, for engines that list it; empty: by its script."""
    pronunciations: tuple[Pronunciation, ...] = ()
    """In rising order, without overlap; for engines with ``Capability.PHONEMES``."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: an incremental text together with a whole one or a script.
        """
        if self.pieces is not None and (self.text or self.script):
            raise ValueError("an incremental text excludes a whole text and a script")

    @property
    def voices(self) -> list[Voice]:
        """The distinct voices, in the order of their first turns."""
        speakers = [turn.voice for piece in self.script for turn in piece]
        return list(dict.fromkeys([*speakers, *(span.voice or self.voice for span in self.spans)])) or [self.voice]


@dataclass(frozen=True, slots=True)
class Mark:
    """When a place in the text is reached."""

    character: int
    """Index into the text of the request; its length stands for the end."""
    time_s: float
    """From the first sample that the engine yields for the request."""
    name: str = ""
    """Of a `Bookmark`; engines do not set it."""
    is_measured: bool = True
    """False: a place whose time is estimated, or the end of a span that has no measured words."""


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A piece of audio from the engine, at the engine's sample rate."""

    samples: FloatSamples
    marks: Sequence[Mark] = ()
    """Where words begin and end, as far as the engine measures it: in rising order over all chunks, also of audio in
    later chunks."""
