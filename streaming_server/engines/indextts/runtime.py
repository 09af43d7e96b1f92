"""The models of IndexTTS 1.0 and 1.5 as one object: features, conditioning, decoding and vocoding of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from streaming_server.engines.indextts import features
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.arrays import Array, take
from streaming_server.engines.torch.codes import CodesAndLatents, CodeWriter, DecodedBatch, JoinedCodes
from streaming_server.engines.torch.decoding import PositionRule
from streaming_server.engines.torch.gpt import Gpt
from streaming_server.engines.torch.pieces import Job, result_of
from streaming_server.engines.torch.sampling import Sampling
from streaming_server.engines.torch.vocoder import Vocoder
from streaming_server.engines.torch.windows import ChunkedVocoder, Windows

CPU = torch.device("cpu")

LookAhead = int | Literal["exact"]
"""Number of codes required after a chunk before it is vocoded; ``exact``: the vocoder's receptive field."""


class Runtime:
    """GPT and vocoder on one device. Not thread-safe, except that ``vocode`` may run concurrently with ``decode``."""

    def __init__(self, gpt: Gpt, vocoder: Vocoder) -> None:
        self.gpt = gpt
        self.vocoder = vocoder
        self.device = gpt.mel_head.weight.device
        self.dtype = gpt.mel_head.weight.dtype
        self._vocoder_dtype = vocoder.conv_post.weight.dtype
        self._windows = Windows(vocoder, vocoder.speaker_width)
        self.writer = CodeWriter(gpt, prefix_rows=gpt.perceiver_encoder.latents.shape[0])

    @property
    def samples_per_code(self) -> int:
        return self.vocoder.shape.samples_per_frame

    def look_ahead_codes(self, look_ahead: LookAhead) -> int:
        return self.vocoder.shape.reach if look_ahead == "exact" else look_ahead

    # The voice

    def resample(self, wav: Array, from_hz: int) -> Tensor:
        """Samples ``(n,)`` at ``from_hz`` → samples at 24 kHz, float32 on the CPU."""
        return features.resample(take(wav, 1, CPU, torch.float32), from_hz)

    def log_mel(self, wav: Array) -> Tensor:
        """Samples ``(n,)`` at 24 kHz → log-mel ``(mels, n // 256 + 1)``, float32 on the CPU.

        Raises:
            ValueError: too few samples for one frame.
        """
        return features.log_mel(take(wav, 1, CPU, torch.float32), self.vocoder.speaker_encoder.n_mels)

    def condition(self, mel: Array) -> Tensor:
        """Log-mel ``(mels, T)`` → conditioning ``(latents, width)``, float32 on the device."""
        return self.gpt.condition(self._take(mel, 2))

    def speaker(self, mel: Array) -> Tensor:
        """Log-mel ``(mels, T)`` → speaker embedding ``(speaker width,)``, float32 on the device."""
        embedding: Tensor = self.vocoder.speaker_encoder(self._take(mel, 2)[None])
        return embedding[0]

    # Decoding

    def decode(
        self, conditioning: Array, text_ids: Array, max_codes: int, do_sample: bool = True, top_p: float = 0.8,
        top_k: int = 30, temperature: float = 1.0, repetition_penalty: float = 10.0,
        positions: PositionRule = "aligned", generator: torch.Generator | None = None,
    ) -> CodesAndLatents:  # fmt: skip
        """Codes as they are decoded, each with its latent: see `CodeWriter.write`.

        Raises:
            ValueError: more text than the model has positions for.
        """
        sampling = Sampling(do_sample, top_p, top_k, temperature, repetition_penalty)
        return self.writer.write(self._prompt(conditioning, text_ids), max_codes, sampling, generator, positions)

    def join(
        self, conditioning: Array, text_ids: Array, max_codes: int, sampling: Sampling,
        generator: torch.Generator | None = None,
    ) -> JoinedCodes:  # fmt: skip
        """Codes with views of their latents, decoded together with those of other texts: see `CodeWriter.join`.

        Raises:
            ValueError: more text than the model has positions for.
        """
        return self.writer.join(self._prompt(conditioning, text_ids), max_codes, sampling, generator)

    def decode_batch(
        self, conditioning: Array, texts: Sequence[Array], max_codes: int, sampling: Sampling, num_beams: int = 1,
        length_penalty: float = 0.0, generators: Sequence[torch.Generator | None] | None = None,
    ) -> DecodedBatch:  # fmt: skip
        """Codes and latents of several texts in one voice, decoded together: see `CodeWriter.write_together`.

        Raises:
            ValueError: more text than the model has positions for.
        """
        prompts = [self._prompt(conditioning, text) for text in texts]
        return self.writer.write_together(prompts, max_codes, sampling, num_beams, length_penalty, generators)

    # Vocoding

    def vocode(self, latents: Array, speaker: Array) -> Tensor:
        """Latents ``(n, width)`` and embedding ``(speaker width,)`` → samples ``(n · samples_per_code,)``, float32."""
        return result_of(self.vocoded(latents, speaker))

    def vocoded(self, latents: Array, speaker: Array, check: Check = never_cancelled) -> Job[Tensor]:
        """`vocode` as a job."""
        dtype = self._vocoder_dtype
        frames, embedding = self._take(latents, 2, dtype), self._take(speaker, 1, dtype)
        samples = yield from self._windows.vocode(frames, embedding, check=check)
        return samples.float()

    def chunked_vocoder(
        self, speaker: Array, look_ahead: LookAhead = "exact", check: Check = never_cancelled
    ) -> ChunkedVocoder:
        """A vocoder for latents that arrive in pieces; with ``exact`` its samples equal those of ``vocode``."""
        return ChunkedVocoder(
            self._windows, self._take(speaker, 1, self._vocoder_dtype), self.vocoder.shape,
            self.look_ahead_codes(look_ahead), check,
        )  # fmt: skip

    # Graphs

    def record(self, windows: Sequence[int], longest: int = 0, requests: int = 1) -> None:
        """Record the decoding step, the prompts and the vocoder; without CUDA, run each once.

        Args:
            windows: Lengths of the vocoder's windows in a stream.
            longest: Segments of up to this many codes are vocoded in recorded windows.
            requests: Maximum number of requests whose windows run as one batch.
        """
        self.writer.record()
        for length in windows:
            self._windows.record(length, requests)
        self._windows.record_wholes(longest, requests)

    def _take(self, array: Array, dimensions: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return take(array, dimensions, self.device, dtype)

    def _prompt(self, conditioning: Array, text_ids: Array) -> Tensor:
        ids = self.writer.check(self._take(text_ids, 1, torch.long))
        return self.gpt.prompt(self._take(conditioning, 2), ids)
