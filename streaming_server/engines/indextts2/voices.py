"""Recordings as 2.0 and 2.5 know them: as a voice, and as an emotion; each analysed once for its content.

This module does not know the reference library, names of voices or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from streaming_server.domain import FloatSamples
from streaming_server.engines.indextts.voices import SHORTEST_S, ByContent
from streaming_server.engines.indextts2.features import HEARING_RATE_HZ
from streaming_server.engines.indextts2.flow import Reference
from streaming_server.engines.indextts2.reading import Segment
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.errors import VoiceUnreadable

LONGEST_S = 15
"""Seconds of a recording that are listened to, as in the public program."""

STEADYING_CODES = 100
"""Most codes of the sentence that a voice says to itself so that its first chunks can be steadied."""

Decode = Callable[[Path], tuple[FloatSamples, int]]


@dataclass(frozen=True, slots=True)
class KnownVoice:
    """What speaking in a voice needs of it."""

    conditioning: Tensor
    """Speaker tokens ``(n, width)``."""
    style: Tensor
    """``(style width,)``."""
    emotion: Tensor
    """Its own emotion vector ``(width,)``."""
    whole: Reference
    """How it sounds, from all of the recording."""
    part: Reference
    """How it sounds, from the last seconds: each solve of a stream sees it again."""
    statistics: Tensor | None = None
    """Of the regulator over a sentence in this voice, where streams below the sentence want them."""


class Voices(ByContent[KnownVoice]):
    """The last ``capacity`` voices that spoke.

    Args:
        runtime: The models.
        capacity: Voices that are kept.
        decode: A file's samples and rate.
        reference_s: Seconds of the recording in ``KnownVoice.part``.
        sentence: Said once in each voice without being heard, for its ``statistics``; None leaves them out.
    """

    def __init__(
        self, runtime: Runtime, capacity: int, decode: Decode, reference_s: float, sentence: Segment | None
    ) -> None:
        super().__init__(capacity, self._analyse)
        self._runtime = runtime
        self._decode = decode
        self._reference_s = reference_s
        self._sentence = sentence

    def heard(self, wav: Sequence[float] | FloatSamples, rate_hz: int) -> KnownVoice:
        """The voice of samples ``(n,)``."""
        runtime = self._runtime
        mel_rate_hz = runtime.hearing.mel.rate_hz
        wide = runtime.resample(torch.as_tensor(wav), rate_hz, mel_rate_hz)[: LONGEST_S * mel_rate_hz]
        narrow = runtime.resample(wide, mel_rate_hz, HEARING_RATE_HZ)
        features, mel, style = runtime.features(narrow), runtime.mel22(wide), runtime.campplus_style(narrow)
        conditioning = runtime.spk_cond(style if runtime.gpt.speaks_by_style else features)
        emotion = runtime.emo(features)
        frames = max(1, round(self._reference_s * mel_rate_hz / runtime.hearing.mel.hop))
        return KnownVoice(
            conditioning,
            style,
            emotion,
            runtime.acoustics.reference(features, mel, style),
            runtime.acoustics.reference(features, mel, style, frames),
            self._statistics(conditioning, emotion),
        )

    def _analyse(self, path: Path) -> KnownVoice:
        samples, rate_hz = listened(self._decode, path)
        return self.heard(samples, rate_hz)

    def _statistics(self, conditioning: Tensor, emotion: Tensor) -> Tensor | None:
        """From the likeliest codes, so that they do not depend on what was said before."""
        if self._sentence is None:
            return None
        decoded = self._runtime.decode(
            conditioning,
            emotion,
            self._sentence.ids,
            STEADYING_CODES,
            do_sample=False,
            language=self._sentence.language,
        )
        pairs = [(code, latent) for code, latent in decoded if code < self._runtime.sounds]
        if not pairs:
            return None
        codes, latents = torch.tensor([code for code, _ in pairs]), torch.stack([latent for _, latent in pairs])
        return self._runtime.acoustics.statistics(codes, latents)


class Feelings(ByContent[Tensor]):
    """The emotion vectors ``(width,)`` of the last ``capacity`` recordings whose emotion was taken."""

    def __init__(self, runtime: Runtime, capacity: int, decode: Decode) -> None:
        super().__init__(capacity, self._analyse)
        self._runtime = runtime
        self._decode = decode

    def _analyse(self, path: Path) -> Tensor:
        samples, rate_hz = listened(self._decode, path)
        narrow = self._runtime.resample(torch.from_numpy(samples), rate_hz, HEARING_RATE_HZ)
        return self._runtime.emo(self._runtime.features(narrow))


def listened(decode: Decode, path: Path) -> tuple[FloatSamples, int]:
    """The first seconds of a recording and their rate.

    Raises:
        VoiceUnreadable: it cannot be decoded, or is too short for the models' windows.
    """
    samples, rate_hz = decode(path)
    if samples.size < SHORTEST_S * rate_hz:
        raise VoiceUnreadable(path.name)
    return samples[: LONGEST_S * rate_hz], rate_hz
