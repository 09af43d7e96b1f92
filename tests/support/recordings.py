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


def with_index(path: Path, samples: int, kind: bytes) -> Path:
    """Add a track of ``kind``, ``soun`` or ``text``, to an MP4 file; it declares so many samples in 500 bytes."""
    content = path.read_bytes()
    start = content.index(b"moov") - 4
    end = start + int.from_bytes(content[start : start + 4])
    codec = b"mp4a" if kind == b"soun" else kind
    entry = _box(codec, bytes(6), struct.pack(">H", 1), bytes(8), struct.pack(">HHHHI", 1, 16, 0, 0, 24000 << 16))
    tables = (
        _box(b"stsd", struct.pack(">II", 0, 1), entry),
        _box(b"stts", struct.pack(">IIII", 0, 1, samples, 2)),
        _box(b"stsc", struct.pack(">IIIII", 0, 1, 1, samples, 1)),
        _box(b"stsz", struct.pack(">III", 0, 1, samples)),
        _box(b"stco", struct.pack(">III", 0, 1, 40)),
    )
    media = _box(
        b"mdia",
        _box(b"mdhd", struct.pack(">IIIIIHH", 0, 0, 0, 24000, samples * 2, 0x55C4, 0)),
        _box(b"hdlr", bytes(8), kind, bytes(13)),
        _box(b"minf", _box(b"stbl", *tables)),
    )
    track = _box(b"trak", _box(b"tkhd", struct.pack(">IIIIII", 0, 0, 0, 2, 0, 1000), bytes(60)), media)
    path.write_bytes(content[:start] + _box(b"moov", content[start + 8 : end], track) + content[end:])
    return path


def _box(name: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + name + body
