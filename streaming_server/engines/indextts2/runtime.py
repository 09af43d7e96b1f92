"""The models of IndexTTS 2.0 and 2.5 as one object: analysis of recordings, emotion vectors, codes and audio.

Input arrays may have leading axes of size 1; results have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streaming_server.engines.indextts import features as common
from streaming_server.engines.indextts2 import features
from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.campplus import CampPlus
from streaming_server.engines.indextts2.emotion import EmotionMatrix, merged
from streaming_server.engines.indextts2.features import MelShape
from streaming_server.engines.indextts2.gpt import EmotionGpt
from streaming_server.engines.indextts2.stages import AcousticStages
from streaming_server.engines.indextts2.w2vbert import W2vBert
from streaming_server.engines.torch.arrays import Array, take
from streaming_server.engines.torch.codes import CodesAndLatents, CodeWriter, DecodedBatch, JoinedCodes
from streaming_server.engines.torch.decoding import PositionRule
from streaming_server.engines.torch.sampling import Sampling

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Hearing:
    """The models that analyse recordings, in float32."""

    w2vbert: W2vBert
    campplus: CampPlus
    mean: Tensor
    """Mean of w2v-BERT's features over the training data, ``(features,)``."""
    deviation: Tensor
    mel: MelShape


class Runtime(AcousticStages):
    """All models on one device. Not thread-safe, except that the acoustics may run concurrently with ``decode``."""

    def __init__(
        self, gpt: EmotionGpt, hearing: Hearing, emotions: EmotionMatrix, acoustics: Acoustics, language: int
    ) -> None:
        self.gpt = gpt
        self.hearing = hearing
        self.emotions = emotions
        self.acoustics = acoustics
        self.device = gpt.mel_head.weight.device
        self.dtype = gpt.mel_head.weight.dtype
        self.language = language
        self.writer = CodeWriter(gpt, gpt.prefix_rows)

    @property
    def sounds(self) -> int:
        """Codes below this value represent audio. The model can also sample START, which does not."""
        return min(self.gpt.shape.start_mel, self.gpt.shape.stop_mel)

    # Analysis of recordings: waveforms and features on the CPU, model outputs on the device, all in float32

    def resample(self, wav: Array, from_hz: int, to_hz: int) -> Tensor:
        return common.resample(take(wav, 1, CPU, torch.float32), from_hz, to_hz)

    def mel22(self, wav: Array) -> Tensor:
        """Samples ``(n,)`` at 22 050 Hz → log-mel ``(80, n // 256)``."""
        return features.log_mel(take(wav, 1, CPU, torch.float32), self.hearing.mel)

    def kaldi_fbank(self, wav: Array) -> Tensor:
        """Samples ``(n,)`` at 16 kHz → logarithmic filter banks ``(frames, 80)``."""
        return features.kaldi_fbank(take(wav, 1, CPU, torch.float32))

    def seamless_feat(self, wav: Array) -> Tensor:
        """Samples ``(n,)`` at 16 kHz → w2v-BERT's input ``(T, 160)``."""
        return features.semantic_input(take(wav, 1, CPU, torch.float32))[0]

    def seamless_mask(self, wav: Array) -> Tensor:
        """Samples ``(n,)`` at 16 kHz → mask ``(T,)``: 1 for each frame of ``seamless_feat`` without padding."""
        return features.semantic_input(take(wav, 1, CPU, torch.float32))[1]

    def hidden(self, frames: Array, mask: Array | None = None) -> tuple[Tensor, ...]:
        """w2v-BERT's input ``(T, 160)`` → its projection and the output of every layer ``(T, features)``."""
        inputs = self._take(frames, 2)
        seen = torch.ones(inputs.shape[0]) if mask is None else mask
        states = self.hearing.w2vbert.hidden(inputs[None], self._take(seen, 1, torch.int32)[None])
        return tuple(state[0] for state in states)

    def features(self, wav: Array) -> Tensor:
        """Samples ``(n,)`` at 16 kHz → normalised semantic features ``(T, features)`` at 50 Hz."""
        frames, mask = features.semantic_input(take(wav, 1, CPU, torch.float32))
        hidden: Tensor = self.hearing.w2vbert(frames[None].to(self.device), mask[None].to(self.device))[0]
        return (hidden - self.hearing.mean) / self.hearing.deviation

    def campplus_style(self, wav: Array) -> Tensor:
        """Samples ``(n,)`` at 16 kHz → style ``(192,)``."""
        frames = features.style_input(take(wav, 1, CPU, torch.float32))
        style: Tensor = self.hearing.campplus(frames[None].to(self.device))
        return style[0]

    # Voice and emotion

    def spk_cond(self, voice: Array) -> Tensor:
        """Features ``(T, features)`` in 2.0 or style ``(192,)`` in 2.5 → speaker tokens ``(n, width)``."""
        return self.gpt.speaker(self._take(voice, 1 if self.gpt.conditions_on_style else 2))

    def emo(self, features: Array) -> Tensor:
        """Normalised features ``(T, features)`` → emotion vector ``(width,)``."""
        return self.gpt.emotion(self._take(features, 2))

    def emo_merged(self, base: Array, reference: Array, alpha: float) -> Tensor:
        return merged(self._take(base, 1), self._take(reference, 1), alpha)

    def emo_index(self, style: Array) -> Tensor:
        """Style ``(192,)`` → index of each emotion's nearest row in its group ``(8,)``."""
        return self.emotions.nearest(self._take(style, 1))

    def emo_from_vector(self, vector: Array, style: Array, base: Array) -> Tensor:
        """Eight weights, the voice's style ``(192,)`` and own emotion ``(width,)`` → emotion vector ``(width,)``."""
        weights: list[float] = take(vector, 1, CPU, torch.float32).tolist()
        return self.emotions.vector(weights, self.emo_index(style), self._take(base, 1))

    # Decoding; ``language`` is a row of 2.5's language embedding, by default that of the configuration

    def prefix(self, spk_cond: Array, emotion: Array, text_ids: Array, language: int | None = None) -> Tensor:
        """All inputs before START_MEL: ``(speaker tokens + 2 + ids + 2, width)``.

        Raises:
            ValueError: more text than the model has positions for.
        """
        ids = self.writer.check(self._take(text_ids, 1, torch.long))
        language = self.language if language is None else language
        return self.gpt.prefix(self._take(spk_cond, 2), self._take(emotion, 1), ids, language)

    def decode(
        self, spk_cond: Array, emotion: Array, text_ids: Array, max_codes: int, do_sample: bool = True,
        top_p: float = 0.8, top_k: int = 30, temperature: float = 0.8, repetition_penalty: float = 10.0,
        positions: PositionRule = "aligned", generator: torch.Generator | None = None, language: int | None = None,
    ) -> CodesAndLatents:  # fmt: skip
        """Codes as they are decoded, each with its latent: see `CodeWriter.write`.

        Raises:
            ValueError: more text than the model has positions for.
        """
        sampling = Sampling(do_sample, top_p, top_k, temperature, repetition_penalty)
        prompt = self.gpt.started(self.prefix(spk_cond, emotion, text_ids, language))
        return self.writer.write(prompt, max_codes, sampling, generator, positions)

    def join(
        self, prefix: Tensor, max_codes: int, sampling: Sampling, generator: torch.Generator | None = None
    ) -> JoinedCodes:
        """Codes with views of their latents, decoded together with those of other prefixes: see `CodeWriter.join`."""
        return self.writer.join(self.gpt.started(prefix), max_codes, sampling, generator)

    def decode_batch(
        self, prefixes: Sequence[Tensor], max_codes: int, sampling: Sampling, num_beams: int = 1,
        length_penalty: float = 0.0, generators: Sequence[torch.Generator | None] | None = None,
    ) -> DecodedBatch:  # fmt: skip
        """Codes and latents of several prefixes, decoded together: see `CodeWriter.write_together`."""
        prompts = [self.gpt.started(prefix) for prefix in prefixes]
        return self.writer.write_together(prompts, max_codes, sampling, num_beams, length_penalty, generators)

    def record(self) -> None:
        """Record the decoding step and the prompts; without CUDA, run each once."""
        self.writer.record()

    def _take(self, array: Array, dimensions: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return take(array, dimensions, self.device, dtype)
