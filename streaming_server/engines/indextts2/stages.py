"""The individual stages from codes to audio, under the names used by the published reference values.

Synthesis uses `Acoustics`; these methods serve to compare a runtime with reference values and to inspect it. They take
arrays and return float32 tensors, without batch axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.flow import Reference
from streaming_server.engines.torch.arrays import Array, take


class AcousticStages:
    """The acoustic stages as methods of a `Runtime`."""

    acoustics: Acoustics

    def rep_codes(self, features: Array) -> Tensor:
        """Features ``(T, features)`` → the codes they are quantised to ``(T,)``; 2.0 only."""
        return self.acoustics.quantize(features)[0]

    def rep_emb(self, features: Array) -> Tensor:
        """Features ``(T, features)`` → embeddings of their codes ``(T, features)``; 2.0 only."""
        return self.acoustics.quantize(features)[1]

    def vq2emb(self, codes: Array) -> Tensor:
        """Codes ``(n,)`` → ``(n, features)``."""
        return self.acoustics.vq2emb(self._codes(codes))

    def dec25(self, codes: Array) -> Tensor:
        """Codes ``(n,)`` → content ``(2 n, features)``; 2.5 only."""
        return self.acoustics.decode_codes(self._codes(codes))

    def gpt_layer(self, latents: Array) -> Tensor:
        """Latents ``(n, latent width)`` → their contribution to the content ``(n, features)``; 2.0 only."""
        return self.acoustics.gpt_layer(latents)

    def mu20(self, codes: Array, latents: Array) -> Tensor:
        """Codes ``(n,)`` with their latents → conditions ``(frames, content width)``."""
        return self.acoustics.mu(self._codes(codes), latents)

    def mu25(self, codes: Array, duration_factor: float = 1.0) -> Tensor:
        """Codes ``(n,)`` → conditions ``(frames, content width)``."""
        return self.acoustics.mu(self._codes(codes), duration_factor=duration_factor)

    def dit_step(self, x: Array, mu: Array, prompt: Array, style: Array, t: float) -> Tensor:
        """Conditional velocity at ``t``: mel ``(bands, T)``, conditions ``(T, content width)`` → ``(bands, T)``."""
        return self.acoustics.dit_step(x, mu, prompt, style, t)

    def cfm(
        self, mu: Array, prompt: Array, style: Array, noise: Array, steps: int, prompt_mu: Array | None = None
    ) -> Tensor:
        """Solve for the mel of the target, ``(bands, n)``.

        Args:
            mu: Conditions of prompt and target ``(P + n, content width)``; of the target only, with ``prompt_mu``.
            prompt: Mel of the prompt ``(bands, P)``.
            style: ``(style width,)``.
            noise: Of prompt and target ``(bands, P + n)``, or of the target only ``(bands, n)``.
            steps: Number of Euler steps.
            prompt_mu: Conditions of the prompt ``(P, content width)``.
        """
        device = self.acoustics.device
        cond, mel, drawn = (take(array, 2, device, torch.float32) for array in (mu, prompt, noise))
        if prompt_mu is not None:
            cond = torch.cat([take(prompt_mu, 2, device, torch.float32), cond])
        frames = mel.shape[1]
        reference = Reference(mel.mT.contiguous(), cond[:frames], take(style, 1, device, torch.float32))
        target = cond[frames:]
        return self.acoustics.cfm(target, reference, drawn[:, drawn.shape[1] - target.shape[0] :], steps)

    def wav(self, mel: Array) -> Tensor:
        """Mel ``(bands, n)`` → samples ``(n · 256,)``."""
        return self.acoustics.vocode(mel)

    def _codes(self, codes: Array) -> Tensor:
        return take(codes, 1, self.acoustics.device, torch.long)
