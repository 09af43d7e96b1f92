"""The nouns of the server: what is asked for, with what voice, and the audio that comes back.

Frozen data only. This module does not know HTTP, files, engines or encoders.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

FloatSamples = npt.NDArray[np.float32]
"""Mono samples in -1.0 … 1.0, shape ``(n,)``: what engines make."""

IntSamples = npt.NDArray[np.int16]
"""Mono signed 16-bit samples, shape ``(n,)``: what encoders take."""


class Granularity(StrEnum):
    """How early a stream lets go of its audio."""

    TOKEN = "token"
    """As the model decodes; such a stream samples with a single beam."""
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
    """Most audio codes of one sentence."""
    max_text_tokens_per_sentence: int = 120
    """Longest sentence, in text tokens; a longer one is cut."""
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Voice:
    """A reference recording whose voice is to speak."""

    name: str
    """The file's stem in the reference folder, or the id of an upload."""
    path: Path
    index: int | None = None
    """Place in the reference folder; None for a voice that is no file of it."""


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """One text to be spoken in one voice."""

    text: str
    voice: Voice
    generation: Generation = field(default_factory=Generation)
    granularity: Granularity = Granularity.TOKEN
    sentence_batch: int = 1
    """Most sentences decoded together; 1 keeps them in sequence. Only with ``Granularity.SENTENCE``."""
    verbose: bool = False
    """Log the details of this request."""
    request_id: str = ""
    """Names the request in the queue."""


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A piece of audio as the engine made it, at the engine's own rate."""

    samples: FloatSamples
