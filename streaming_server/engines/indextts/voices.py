"""Reference recordings as the model knows them, kept by content so that a voice is analysed once.

This module does not know the reference library, names of voices or requests.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from streaming_server.domain import FloatSamples
from streaming_server.engines.indextts.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.errors import VoiceFileMissing, VoiceUnreadable

T = TypeVar("T")

LONGEST_S = 60
"""Seconds of a recording that are listened to: the Conformer's memory grows with their square."""
SHORTEST_S = 0.1
"""A recording of less has too few frames for the encoders' windows."""


@dataclass(frozen=True, slots=True)
class KnownVoice:
    """What decoding and vocoding need of a voice."""

    conditioning: Tensor
    """``(latents, width)``"""
    speaker: Tensor
    """``(speaker width,)``"""


class ByContent(Generic[T]):
    """What was found out about the last ``capacity`` recordings, by the SHA-256 of their files."""

    def __init__(self, capacity: int, listen: Callable[[Path], T]) -> None:
        self._capacity = capacity
        self._listen = listen
        self._known: OrderedDict[bytes, T] = OrderedDict()

    def get(self, path: Path) -> T:
        """What is known of a recording; it is listened to only where its content is new.

        Raises:
            VoiceFileMissing: there is no such file.
            VoiceUnreadable: it cannot be decoded, or is too short to hold a voice.
        """
        try:
            content = hashlib.sha256(path.read_bytes()).digest()
        except OSError as error:
            raise VoiceFileMissing(path.name) from error
        if content not in self._known:
            self._known[content] = self._listen(path)
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
        self._known.move_to_end(content)
        return self._known[content]


class Voices(ByContent[KnownVoice]):
    """Voices as decoding and vocoding need them."""

    def __init__(self, runtime: Runtime, capacity: int, decode: Callable[[Path], tuple[FloatSamples, int]]) -> None:
        super().__init__(capacity, self._analyse)
        self._runtime = runtime
        self._decode = decode

    def _analyse(self, path: Path) -> KnownVoice:
        samples, rate_hz = self._decode(path)
        wav = self._runtime.resample(torch.from_numpy(samples[: LONGEST_S * rate_hz]), rate_hz)
        if wav.numel() < SHORTEST_S * SAMPLE_RATE_HZ:
            raise VoiceUnreadable(path.name)
        mel = self._runtime.log_mel(wav)
        return KnownVoice(self._runtime.condition(mel), self._runtime.speaker(mel))
