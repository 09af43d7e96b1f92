"""How far is IndexTTS 2's mel from the whole's when it is made chunk by chunk? On the tiny model, with random weights.

``python -m benchmarks.chunk_distance`` needs no checkpoint, and ranks settings rather than telling what is heard; for
that, ``streaming-server calibrate`` takes the real weights. This module knows the acoustics only.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.chunks import CHUNK, SEGMENT, MelStream, Pace
from tests.engines.indextts2 import acoustic_parity

SILENT = 15
"""Codes at the beginning of each utterance."""


def main() -> None:
    """How far the mel of chunks is from that of the whole, on the fixtures' weights, in shares of a yardstick.

    The yardstick is the distance between two exact solves with different noise: what the model takes for the same.
    """
    print("| version | look-ahead, frames | own statistics | of the yardstick | the voice's too | of the yardstick |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for version, enhanced in (("2.0", False), ("2.5", True)):
        acoustics = acoustic_parity.build(enhanced)
        codes, latents = some_codes(200, seed=7)
        other_codes, other_latents = some_codes(120, seed=9)
        beside, other_beside = (None, None) if enhanced else (latents, other_latents)
        statistics = acoustics.statistics(other_codes, other_beside)
        whole = mel_of(acoustics, SEGMENT, codes, beside)
        yardstick = distance(mel_of(acoustics, SEGMENT, codes, beside, seed=2), whole)
        for look_ahead in (0, 2, 4, 8, 16, 32):
            pace = replace(CHUNK, look_ahead=look_ahead)
            apart = [
                distance(mel_of(acoustics, pace, codes, beside, statistics=pooled), whole)
                for pooled in (None, statistics)
            ]
            shares = " | ".join(f"{value:.4f} | {value / yardstick:.3f}" for value in apart)
            print(f"| {version} | {look_ahead} | {shares} |")


def some_codes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes and latents, those of the beginning all alike, as where one is silent first."""
    generator = torch.Generator().manual_seed(seed)
    codes, latents = torch.randint(64, (count,), generator=generator), torch.randn(count, 1280, generator=generator)
    codes[:SILENT], latents[:SILENT] = codes[0], 0.0
    return codes, latents


def mel_of(
    acoustics: Acoustics, pace: Pace, codes: Tensor, latents: Tensor | None, seed: int = 1,
    statistics: Tensor | None = None,
) -> Tensor:  # fmt: skip
    stream = MelStream(acoustics, acoustic_parity.reference(), pace, 12, seed, statistics=statistics)
    return torch.cat([chunk.settled for chunk in [*stream.push(codes, latents), *stream.finish()]])


def distance(mel: Tensor, other: Tensor) -> float:
    """Root mean square of the difference, relative to the other's."""
    return float((mel - other).square().mean().sqrt() / other.square().mean().sqrt())


if __name__ == "__main__":
    main()
