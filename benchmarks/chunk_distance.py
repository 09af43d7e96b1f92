"""Distance of IndexTTS 2's mel in chunks from the exact solve, on the tiny model with random weights.

``python -m benchmarks.chunk_distance`` needs no checkpoint. It ranks settings but does not show what is audible;
``streaming-server calibrate`` measures with the real weights.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from streaming_server.engines.indextts2.calibration import mel_of, rms_difference
from streaming_server.engines.indextts2.chunks import CHUNK, SEGMENT
from streaming_server.engines.torch.calibration import Utterance
from tests.engines.indextts2 import acoustic_parity

STEPS = 25
SILENT = 15
"""Number of codes at the beginning of each utterance."""


def main() -> None:
    """Print the distance of the mel in chunks from the exact one, on the fixtures' weights.

    It is relative to the distance between two exact solves with different noise.
    """
    print("| version | look-ahead, frames | own statistics | the voice's too |\n| --- | ---: | ---: | ---: |")
    for version, enhanced in (("2.0", False), ("2.5", True)):
        acoustics = acoustic_parity.build(enhanced)
        utterance, earlier = some_codes(200, seed=7), some_codes(120, seed=9)
        statistics = acoustics.statistics(earlier.codes, earlier.latents)
        solve = partial(mel_of, acoustics, acoustic_parity.reference(), utterance)
        whole = solve(SEGMENT, STEPS, seed=1)
        yardstick = rms_difference(solve(SEGMENT, STEPS, seed=2), whole)
        for look_ahead in (0, 2, 4, 8, 16, 32):
            pace = replace(CHUNK, look_ahead=look_ahead)
            mels = (solve(pace, STEPS, seed=1, statistics=pooled) for pooled in (None, statistics))
            shares = " | ".join(f"{rms_difference(mel, whole) / yardstick:.4f}" for mel in mels)
            print(f"| {version} | {look_ahead} | {shares} |", flush=True)
        for steps in (12, 8, 4):
            share = rms_difference(solve(SEGMENT, steps, seed=1), whole) / yardstick
            print(f"| {version} | whole, {steps} steps instead of {STEPS} | {share:.4f} | |", flush=True)


def some_codes(count: int, seed: int) -> Utterance:
    """Return codes and latents; those of the beginning are equal, as in silence."""
    generator = torch.Generator().manual_seed(seed)
    codes, latents = torch.randint(64, (count,), generator=generator), torch.randn(count, 1280, generator=generator)
    codes[:SILENT], latents[:SILENT] = codes[0], 0.0
    return Utterance(codes, latents, ())


if __name__ == "__main__":
    main()
