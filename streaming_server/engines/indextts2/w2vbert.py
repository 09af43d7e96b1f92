"""The first layers of w2v-BERT 2.0 (Barrault et al., 2023, "Seamless"), through transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from streaming_server.engines.torch.torchaudio import settle_torchaudio

LAYERS = 17
"""Number of layers; IndexTTS 2 uses the output of this layer, and later ones are neither loaded nor run."""

UNUSED = ("masked_spec_embed", "adapter.", "intermediate_ffn.")
"""Prefixes of keys that only training or other uses of the model need."""


class W2vBert(nn.Module):
    """The feature projection and up to ``LAYERS`` layers; keys are those of the published weights."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        settle_torchaudio()
        from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

        self.layers = min(LAYERS, int(config.get("num_hidden_layers", 24)))
        needed = dict(config) | {
            "num_hidden_layers": self.layers, "add_adapter": False, "use_intermediate_ffn_before_adapter": False,
            "mask_time_prob": 0.0, "mask_feature_prob": 0.0,
        }  # fmt: skip
        self.model = Wav2Vec2BertModel(Wav2Vec2BertConfig(**needed))

    def unneeded(self, key: str) -> bool:
        """Whether a published weight belongs to a part that is not used."""
        beginning = "encoder.layers."
        if key.startswith(beginning):
            number = key.removeprefix(beginning).split(".")[0]
            return number.isdigit() and int(number) >= self.layers
        return key.startswith(UNUSED)

    def hidden(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Frames ``(B, T, 160)``, mask ``(B, T)`` → projected input and each layer's output ``(B, T, width)``."""
        states: tuple[Tensor, ...] = self.model(
            input_features=frames, attention_mask=mask, output_hidden_states=True
        ).hidden_states
        return states

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Frames ``(B, T, 160)``, mask ``(B, T)`` → output of the last layer ``(B, T, width)``."""
        out: Tensor = self.model(input_features=frames, attention_mask=mask).last_hidden_state
        return out
