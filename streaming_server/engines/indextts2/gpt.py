"""The GPTs of IndexTTS 2.0 and 2.5: the GPT of 1.5 with a prefix that conditions voice and emotion separately.

Attribute names are those of the checkpoint.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from streaming_server.engines.torch.conditioning import Conformer, Perceiver
from streaming_server.engines.torch.gpt import CodeGpt, GptShape

SPEEDS = 2
"""Rows of 2.0's speed embedding; the prefix contains both, the second one first."""


Reader = tuple[Conformer, Perceiver]
"""Encodes the features of a recording to a few vectors."""


class EmotionGpt(CodeGpt, ABC):
    """Common base of 2.0 and 2.5: computes an emotion vector from the features of a recording."""

    speaker_rows: int
    """Number of speaker tokens; the emotion vector is added to each of them."""
    conditions_on_style: bool
    """Whether speaker tokens are computed from the style vector (2.5) instead of the features (2.0)."""

    def __init__(self, shape: GptShape, emotion: Reader) -> None:
        super().__init__(shape)
        self.emo_conditioning_encoder, self.emo_perceiver_encoder = emotion
        self.emovec_layer = nn.Linear(self.emo_perceiver_encoder.latents.shape[1], shape.width)
        self.emo_layer = nn.Linear(shape.width, shape.width)

    @property
    def prefix_rows(self) -> int:
        return self.speaker_rows + SPEEDS

    def emotion(self, features: Tensor) -> Tensor:
        """Features ``(T, features)`` → emotion vector ``(width,)``."""
        read: Tensor = self.emo_perceiver_encoder(self.emo_conditioning_encoder(features[None]))[0, 0]
        vector: Tensor = self.emo_layer(self.emovec_layer(read))
        return vector

    @abstractmethod
    def speaker(self, voice: Tensor) -> Tensor:
        """Compute speaker tokens ``(n, width)``.

        ``voice`` is w2v-BERT's features ``(T, features)`` in 2.0 and CAM++'s style ``(192,)`` in 2.5.
        """

    @abstractmethod
    def prefix(self, speaker: Tensor, emotion: Tensor, text_ids: Tensor, language: int | None = None) -> Tensor:
        """Speaker tokens ``(n, width)``, emotion ``(width,)``, ids → all inputs before START_MEL.

        They are ``(n + 2 + ids + 2, width)``. ``language`` is a row of 2.5's language embedding; 2.0 has none.
        """


class Gpt20(EmotionGpt):
    """2.0: one speaker token per latent of the Perceiver."""

    conditions_on_style = False

    def __init__(self, shape: GptShape, voice: Reader, emotion: Reader) -> None:
        super().__init__(shape, emotion)
        self.conditioning_encoder, self.perceiver_encoder = voice
        self.speaker_rows = self.perceiver_encoder.latents.shape[0]
        self.speed_emb = nn.Embedding(SPEEDS, shape.width)

    def speaker(self, voice: Tensor) -> Tensor:
        latents: Tensor = self.perceiver_encoder(self.conditioning_encoder(voice[None]))
        return latents[0]

    def prefix(self, speaker: Tensor, emotion: Tensor, text_ids: Tensor, language: int | None = None) -> Tensor:
        text = self.words(text_ids)
        return torch.cat([(speaker + emotion).to(text.dtype), self.speed_emb.weight.flip(0), text])


class Gpt25(EmotionGpt):
    """2.5: one speaker token, projected from the style; a language embedding is added to each text position."""

    speaker_rows = 1
    conditions_on_style = True

    def __init__(self, shape: GptShape, style: int, languages: int, emotion: Reader) -> None:
        super().__init__(shape, emotion)
        self.spk_emb_proj = nn.Linear(style, shape.width)
        self.lang_embedding = nn.Embedding(languages, shape.width)

    def speaker(self, voice: Tensor) -> Tensor:
        token: Tensor = self.spk_emb_proj(voice[None])
        return token

    def prefix(self, speaker: Tensor, emotion: Tensor, text_ids: Tensor, language: int | None = None) -> Tensor:
        text = self.words(text_ids)
        if language is not None:
            text = text + self.lang_embedding.weight[language]
        return torch.cat([(speaker + emotion).to(text.dtype), text.new_zeros(SPEEDS, text.shape[1]), text])
