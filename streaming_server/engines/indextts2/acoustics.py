"""The acoustic stages from codes to audio: codec, length regulator, flow and vocoder.

Each stage takes one item without a batch axis and returns a float32 tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streaming_server.engines.indextts2.codec import Codec, EnhancedCodec, RepCodec
from streaming_server.engines.indextts2.dit import Estimator, Span, attention_bias, rotations
from streaming_server.engines.indextts2.flow import Flow, Reference
from streaming_server.engines.indextts2.regulator import LengthRegulator
from streaming_server.engines.indextts2.wavenet import mirrored
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.arrays import Array, take
from streaming_server.engines.torch.pieces import Job, result_of
from streaming_server.engines.torch.vocoder import Generator
from streaming_server.engines.torch.windows import Windows

SAMPLE_RATE_HZ = 22_050
FRAMES_PER_CONTENT = 1.72
"""Mel frames per content vector; 2.0 has one vector per code, 2.5 two."""


class S2Mel(nn.Module):
    """The modules of ``s2mel.pth`` under its keys; only 2.0 uses ``gpt_layer``."""

    def __init__(self, estimator: Estimator, regulator: LengthRegulator, gpt_layer: nn.Sequential | None) -> None:
        super().__init__()
        self.cfm = nn.ModuleDict({"estimator": estimator})
        self.length_regulator = regulator
        if gpt_layer is not None:
            self.gpt_layer = gpt_layer

    @property
    def estimator(self) -> Estimator:
        estimator = self.cfm["estimator"]
        assert isinstance(estimator, Estimator)
        return estimator


class Acoustics:
    """The modules on their device: codec and regulator in float32, estimator and vocoder in their own dtypes."""

    def __init__(self, s2mel: S2Mel, codec: Codec, vocoder: Generator) -> None:
        self.s2mel = s2mel
        self.codec = codec
        self.vocoder = vocoder
        self.device = s2mel.estimator.cond_projection.weight.device
        self.flow = Flow(s2mel.estimator)
        self.windows = Windows(vocoder)

    @property
    def bands(self) -> int:
        return self.s2mel.estimator.shape.bands

    @property
    def samples_per_frame(self) -> int:
        return self.vocoder.shape.samples_per_frame

    @property
    def decodes_ahead(self) -> bool:
        """Whether the decoding of a code depends on later codes."""
        return isinstance(self.codec, EnhancedCodec)

    def frames(self, codes: int, duration_factor: float = 1.0) -> int:
        """Number of mel frames for a number of codes."""
        return int(FRAMES_PER_CONTENT * (2 if self.decodes_ahead else 1) * codes * duration_factor)

    # The voice

    def quantize(self, features: Array) -> tuple[Tensor, Tensor]:
        """Features ``(T, width)`` → codes ``(T,)`` and their embeddings ``(T, width)``; 2.0 only."""
        assert isinstance(self.codec, RepCodec)
        codes: Tensor = self.codec(self._take(features, 2)[None])
        return codes[0], self.codec.vq2emb(codes)[0]

    def prompt_mu(self, features: Array, frames: int) -> Tensor:
        """Conditions of the reference: features ``(T, width)`` → ``(frames, content width)``."""
        content = self._take(features, 2) if self.decodes_ahead else self.quantize(features)[1]
        mu: Tensor = self.s2mel.length_regulator(content[None], frames)
        return mu[0]

    def reference(self, features: Array, mel: Array, style: Array, frames: int | None = None) -> Reference:
        """Build the reference of a voice.

        Args:
            features: Features of the complete recording, ``(T, width)``.
            mel: Mel of the complete recording, ``(bands, P)``.
            style: ``(style width,)``.
            frames: Use only this many frames from the end: a solve is cheaper and has the same shape for all voices.
        """
        columns = self._take(mel, 2).mT
        mu = self.prompt_mu(features, columns.shape[0])
        first = 0 if frames is None else max(0, columns.shape[0] - frames)
        return Reference(columns[first:].contiguous(), mu[first:].contiguous(), self._take(style, 1))

    # Codes to conditions

    def vq2emb(self, codes: Array) -> Tensor:
        """Codes ``(n,)`` → ``(n, width)``."""
        return self.codec.vq2emb(self._take(codes, 1, torch.long)[None])[0]

    def gpt_layer(self, latents: Array) -> Tensor:
        """The GPT's latents ``(n, latent width)`` → their contribution to the content, ``(n, width)``; 2.0 only."""
        out: Tensor = self.s2mel.gpt_layer(self._take(latents, 2))
        return out

    def decode_codes(self, codes: Array) -> Tensor:
        """Codes ``(n,)`` → content ``(2 n, width)``; 2.5 only."""
        out: Tensor = self.codec(self._take(codes, 1, torch.long)[None])
        return out[0]

    def content(self, codes: Array, latents: Array | None = None) -> Tensor:
        """Codes ``(n,)`` and, in 2.0, their latents ``(n, latent width)`` → content ``(n or 2 n, width)``."""
        if self.decodes_ahead:
            return self.decode_codes(codes)
        assert latents is not None
        return self.vq2emb(codes) + self.gpt_layer(latents)

    def mu(
        self, codes: Array, latents: Array | None = None, duration_factor: float = 1.0, pooled: Tensor | None = None,
        goes_on: bool = False,
    ) -> Tensor:  # fmt: skip
        """Conditions of the codes, ``(frames, content width)``.

        Args:
            codes: ``(n,)``.
            latents: ``(n, latent width)`` in 2.0; ignored in 2.5.
            duration_factor: Factor on the natural duration.
            pooled: Statistics of an earlier utterance, from ``statistics``.
            goes_on: Whether more codes follow.
        """
        content = self.content(codes, latents)
        frames = self.frames(len(codes), duration_factor)
        rate = FRAMES_PER_CONTENT * duration_factor if goes_on else None
        mu: Tensor = self.s2mel.length_regulator(content[None], frames, pooled, rate)
        return mu[0]

    def statistics(self, codes: Array, latents: Array | None = None) -> Tensor:
        """Statistics of an utterance, ``(blocks, 2)``; streams in the same voice pool them with their own."""
        content = self.content(codes, latents)
        return self.s2mel.length_regulator.statistics(content[None], self.frames(len(codes)))

    # Conditions to audio

    def dit_step(self, x: Array, mu: Array, prompt: Array, style: Array, t: float) -> Tensor:
        """Conditional velocity at time ``t``: noisy mel ``(bands, T)``, conditions ``(T, width)`` → ``(bands, T)``."""
        estimator = self.s2mel.estimator
        dtype = estimator.cond_projection.weight.dtype
        rows, cond = self._take(x, 2, dtype).mT, self._take(prompt, 2, dtype).mT
        mel = torch.zeros_like(rows)
        mel[: cond.shape[0]] = cond
        beside = estimator.rows(mel[None], self._take(mu, 2, dtype)[None], self._take(style, 1, dtype)[None])
        length, shape = rows.shape[0], estimator.shape
        span = Span(
            rotations(length, shape.width // shape.heads).to(self.device),
            attention_bias(torch.ones(1, length, dtype=torch.bool, device=self.device), dtype),
            mirrored(length, 0, length, estimator.wavenet.widest)[None].to(self.device),
            start=0,
        )
        scale_shift = estimator.scale_shift(torch.tensor([t], device=self.device))
        direction: Tensor = estimator(rows[None], beside[None], scale_shift, span)
        return direction[0, 0].mT.float()

    def cfm(self, mu: Array, reference: Reference, noise: Array, steps: int) -> Tensor:
        """Conditions ``(n, content width)`` and noise ``(bands, n)`` → mel ``(bands, n)``."""
        return result_of(self.flow.solve(reference, self._take(mu, 2), self._take(noise, 2).mT, steps)).mT

    def vocode(self, mel: Array) -> Tensor:
        """Mel ``(bands, n)`` → samples ``(n · samples_per_frame,)``."""
        return result_of(self.sound(self._take(mel, 2).mT))

    def sound(self, frames: Tensor, check: Check = never_cancelled) -> Job[Tensor]:
        """Mel ``(n, bands)`` → samples ``(n · samples_per_frame,)``; uses a recorded window if the length matches."""
        samples = yield from self.windows.vocode(frames.to(self.vocoder.conv_post.weight.dtype), check=check)
        return samples.float()

    def _take(self, array: Array, dimensions: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return take(array, dimensions, self.device, dtype)
