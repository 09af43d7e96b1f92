"""Recordings in the four formats that may be uploaded, as clients' tools write them."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import numpy as np

SUFFIXES = ("wav", "mp3", "flac", "m4a")


def made(path: Path, *options: str, seconds: float = 1.0, source: str = "sine=220", rate_hz: int = 24000) -> Path:
    """Create a recording with FFmpeg; suffix and options determine the format."""
    generator = ["-f", "lavfi", "-i", f"{source}{':' if '=' in source else '='}r={rate_hz}:d={seconds}"]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *generator, *options, str(path)], check=True)
    return path


def cut(path: Path, share: float) -> Path:
    """The beginning of a file, in its place."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def float_wav(path: Path, sample: float, rate_hz: int = 24000) -> Path:
    """A second and a half of noise in 32-bit floats, with one sample replaced."""
    samples = (np.random.default_rng(0).standard_normal(rate_hz * 3 // 2) / 10).astype("<f4")
    samples[rate_hz // 2] = sample
    data = samples.tobytes()
    head = struct.pack("<HHIIHH", 3, 1, rate_hz, 4 * rate_hz, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path
