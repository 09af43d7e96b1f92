"""The nouns of the server: what is asked for, with what voice, and the audio that comes back.

Frozen data only. This module does not know HTTP, files, engines or encoders.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

_WEIGHT = re.compile(r"\d{1,6}(\.\d{1,6})?", re.ASCII)

FloatSamples = npt.NDArray[np.float32]
"""Mono samples in -1.0 … 1.0, shape ``(n,)``: what engines make."""

IntSamples = npt.NDArray[np.int16]
"""Mono signed 16-bit samples, shape ``(n,)``: what encoders take."""


class Capability(StrEnum):
    """Something that a request may ask for and not every engine can do."""

    TEXT_TO_SPEECH = "text_to_speech"
    VOICE_CLONING = "voice_cloning"
    """Speaks in the voice of a recording."""
    MULTI_LANGUAGE = "multi_language"
    GENERATION_PARAMETERS = "generation_parameters"
    """Honours the sampling parameters of `Generation`."""
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
    """Takes a script as a whole."""
    SCENE = "scene"
    SMART_VOICE = "smart_voice"
    """Chooses the speakers' voices itself."""


class Granularity(StrEnum):
    """How early a stream lets go of its audio."""

    TOKEN = "token"
    """As the model decodes, below the sentence; such a stream samples with a single beam."""
    SENTENCE = "sentence"
    """A whole sentence at a time; ``num_beams`` is honoured."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Sampling parameters of an autoregressive model; an engine without one ignores them."""

    do_sample: bool = True
    top_p: float = 0.95
    top_k: int = 30
    temperature: float = 1.2
    length_penalty: float = 0.0
    num_beams: int = 3
    repetition_penalty: float = 10.0
    max_mel_tokens: int = 600
    """Most audio codes of one sentence, or of whatever else a model makes at once."""
    max_text_tokens_per_sentence: int = 120
    """Longest sentence, in text tokens; a longer one is cut."""
    seed: int | None = None
    ras_window: int = 7
    """Repetition-aware sampling: codes that are looked back at; 0 leaves it out."""
    ras_repeats: int = 2
    """How often a code may occur among those before it is drawn again."""
    context_pieces: int | None = 2
    """Earlier pieces of a script that a model hears again before it makes the next; None: all."""


Gender = Literal["male", "female"]


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice that can be asked for: a reference recording, or a preset that the engine owns."""

    name: str
    """Its id: the stem of a file in the reference folder, the id of an upload, or the engine's name of a preset."""
    path: Path = Path()
    """The recording; empty for a preset."""
    index: int | None = None
    """Place in the reference folder; None for a voice that is no file of it."""
    is_preset: bool = False
    title: str = ""
    """The name to show; empty where it is ``name``."""
    languages: tuple[str, ...] = ()
    """BCP 47 codes of the languages that it is made for; empty where it has none in particular."""
    gender: Gender | None = None
    """None where it is not known."""


def parse_blend(name: str) -> tuple[tuple[str, float], ...]:
    """The voices in a name such as ``a``, ``a+b`` or ``a:0.7+b:0.3``, and their weights; 1 where none is given.

    A part whose weight is not a positive number is a voice's name as a whole.
    """
    blend = []
    for part in name.split("+"):
        voice, _, weight = part.strip().partition(":")
        if _WEIGHT.fullmatch(weight) and float(weight) > 0:
            blend.append((voice, float(weight)))
        else:
            blend.append((part.strip(), 1.0))
    return tuple(blend)


EMOTIONS = ("happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm")
"""What the places of an `EmotionVector` stand for."""

EmotionVector = tuple[float, float, float, float, float, float, float, float]
"""How much of each of `EMOTIONS`, 0-1."""


@dataclass(frozen=True, slots=True)
class Emotion:
    """How a text is felt: as a recording, a vector or a description says; as the voice itself where none is given."""

    reference: Voice | None = None
    """A recording whose emotion, not whose voice, is taken."""
    vector: EmotionVector | None = None
    text: str | None = None
    """A description in words."""
    weight: float = 1.0
    """How strong, 0-1."""
    random: bool = False
    """Draw the emotion's rendering anew for each request; the same one for the same ``Generation.seed``."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: two sources at once, a vector that is none, or a number outside 0-1.
        """
        if sum(source is not None for source in (self.reference, self.vector, self.text)) > 1:
            raise ValueError("an emotion comes from a recording, a vector or a text, not from two of them")
        if self.vector is not None and len(self.vector) != len(EMOTIONS):
            raise ValueError(f"an emotion vector has {len(EMOTIONS)} numbers, not {len(self.vector)}")
        if not all(0 <= value <= 1 for value in (self.weight, *(self.vector or ()))):
            raise ValueError("the weight and the numbers of an emotion vector are from 0 to 1")


@dataclass(frozen=True, slots=True)
class Turn:
    """Words of one speaker."""

    text: str
    voice: Voice
    speaker: int | None = None
    """The n of ``[SPEAKERn]``; None in a text that is no dialogue."""


Script = tuple[tuple[Turn, ...], ...]
"""What is said, in pieces: a model that can makes the turns of a piece at once, any other turn after turn."""


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """One text to be spoken: in one voice, or as its script says."""

    text: str
    """As it came; with a script only shown and counted."""
    voice: Voice
    """With a script, its first."""
    generation: Generation = field(default_factory=Generation)
    granularity: Granularity | None = None
    """None: as the engine is set to."""
    sentence_batch: int = 1
    """Most sentences decoded together; 1 keeps them in sequence. Only with ``Granularity.SENTENCE``."""
    verbose: bool = False
    """Log the details of this request."""
    request_id: str = ""
    """Names the request in the queue."""
    emotion: Emotion | None = None
    """None: as the voice itself."""
    speed: float = 1.0
    """Tempo, 0.25-4.0, the pitch kept. An engine without ``Capability.SPEED`` speaks at 1.0, and the stream is
    stretched on its way to the encoder."""
    script: Script = ()
    """Who says what; empty: ``voice`` says ``text``."""
    scene: str = ""
    """Where it is said, in words, for engines with ``Capability.SCENE``."""
    own_voices: bool = False
    """An engine with ``Capability.SMART_VOICE`` chooses how each speaker sounds, whatever the voices say."""

    @property
    def voices(self) -> list[Voice]:
        """All that speak, each once, in the order of their first words."""
        return list(dict.fromkeys(turn.voice for piece in self.script for turn in piece)) or [self.voice]


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A piece of audio as the engine made it, at the engine's own rate."""

    samples: FloatSamples
