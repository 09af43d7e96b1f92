"""Speed of the Ogg Opus encoder relative to libopus alone, and the size of the Ogg pages.

Both encode the same speech alternately in one run. The floor is a loop that only calls libopus.

Usage: python -m benchmarks.encoding [--rounds N]
"""

from __future__ import annotations

import argparse
import ctypes
import time

import numpy as np

from benchmarks.common import TEXT, table

from streaming_server.audio import opus  # isort: skip - it tells opuslib where its library is
import opuslib
from opuslib.api import ctl, encoder

from streaming_server.audio.encoders import OggOpusEncoder
from streaming_server.audio.pcm import Resampler
from streaming_server.domain import IntSamples
from streaming_server.engines.espeak.languages import runs
from streaming_server.engines.espeak.library import EspeakLibrary, Timbre, find_files

RATE_HZ = 24000
FRAME = RATE_HZ // 50


def speech(seconds: float) -> IntSamples:
    library = EspeakLibrary(*find_files())
    chunks: list[bytes] = []
    for language, part in runs(TEXT):
        library.speak(part, language, Timbre(), chunks.append)
    samples = Resampler(library.sample_rate_hz, RATE_HZ).push(np.frombuffer(b"".join(chunks), np.int16))
    return np.resize(samples, round(seconds * RATE_HZ))


def bare_loop(samples: IntSamples, complexity: int) -> tuple[float, int]:
    """Return seconds and bytes of audio of libopus alone."""

    state = encoder.create_state(RATE_HZ, 1, opuslib.APPLICATION_AUDIO)
    encoder.encoder_ctl(state, ctl.set_bitrate, 32000)
    encoder.encoder_ctl(state, ctl.set_complexity, complexity)
    out = ctypes.create_string_buffer(4000)
    frames = [
        samples[at : at + FRAME].ctypes.data_as(ctypes.POINTER(ctypes.c_int16))
        for at in range(0, samples.size - FRAME + 1, FRAME)
    ]
    encode, size = encoder.libopus_encode, 0
    began_s = time.perf_counter()
    for frame in frames:
        size += encode(state, frame, FRAME, out, 4000)
    elapsed_s = time.perf_counter() - began_s
    encoder.destroy(state)
    return elapsed_s, size


def whole_encoder(samples: IntSamples, complexity: int) -> tuple[float, int]:
    """Return seconds and bytes of `OggOpusEncoder` for chunks of 200 ms."""
    encoder = OggOpusEncoder(32000, complexity)
    began_s = time.perf_counter()
    size = len(encoder.start(RATE_HZ))
    for at in range(0, samples.size, RATE_HZ // 5):
        size += len(encoder.push(samples[at : at + RATE_HZ // 5]))
    size += len(encoder.finish())
    return time.perf_counter() - began_s, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    seconds = 10.0
    samples = speech(seconds)
    rows = []
    for complexity in (10, 5, 0):
        bare, whole = [], []
        for _ in range(rounds):
            bare.append(bare_loop(samples, complexity))
            whole.append(whole_encoder(samples, complexity))
        bare_s, whole_s = (
            min(elapsed for elapsed, _ in side) for side in (bare, whole)
        )  # the run with the least interference
        audio, total = bare[0][1], whole[0][1]
        rows.append(
            [
                str(complexity),
                f"{seconds / bare_s:.0f}x",
                f"{seconds / whole_s:.0f}x",
                f"{bare_s / whole_s:.3f}",
                f"{(total - audio) / total:.2%}",
            ]
        )
    print(f"{opus.library_version()}, {seconds:g} s of speech at {RATE_HZ} Hz, 32 kbit/s")
    table(["complexity", "libopus alone", "Ogg Opus encoder", "ratio (bar 0.9)", "Ogg share (bar 5%)"], rows)


if __name__ == "__main__":
    main()
