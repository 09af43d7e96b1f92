"""Recordings in the four formats that may be uploaded, as clients' tools write them."""

from __future__ import annotations

import subprocess
from pathlib import Path

SUFFIXES = ("wav", "mp3", "flac", "m4a")


def made(path: Path, *options: str, seconds: float = 1.0, source: str = "sine=220", rate_hz: int = 24000) -> Path:
    """A recording made by FFmpeg's command line; what it is, is told by its suffix and the options."""
    generator = ["-f", "lavfi", "-i", f"{source}{':' if '=' in source else '='}r={rate_hz}:d={seconds}"]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *generator, *options, str(path)], check=True)
    return path


def cut(path: Path, share: float) -> Path:
    """The beginning of a file, in its place."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
