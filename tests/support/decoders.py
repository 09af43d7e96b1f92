"""Independent readers of what the encoders write: FFmpeg's command line and PyAV."""

from __future__ import annotations

import io
import json
import subprocess

import av
import numpy as np

from streaming_server.domain import IntSamples


def ffmpeg_decode(encoded: bytes, rate_hz: int, *, raw: bool = False) -> IntSamples:
    """Mono samples at ``rate_hz``; ``raw``: the bytes are samples at that rate, without a header.

    Raises:
        AssertionError: FFmpeg finds something to complain of.
    """
    form = ["-f", "s16le", "-ar", str(rate_hz), "-ac", "1"]
    command = ["ffmpeg", "-v", "error", *(form if raw else []), "-i", "-", *form, "-"]
    done = subprocess.run(command, input=encoded, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    return np.frombuffer(done.stdout, "<i2").astype(np.int16)


def ffprobe(encoded: bytes) -> dict[str, str]:
    """What FFmpeg finds: ``codec_name``, ``sample_rate`` and ``channels`` of the stream, ``format_name``."""
    entries = "stream=codec_name,sample_rate,channels:format=format_name"
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", "-"]
    found = json.loads(subprocess.run(command, input=encoded, capture_output=True, check=True).stdout)
    (stream,) = found["streams"]
    return {key: str(value) for key, value in {**stream, **found["format"]}.items()}


def decodable_s(encoded: bytes) -> float:
    """How many seconds of sound a beginning of a file holds; 0 where it cannot be opened yet."""
    try:
        with av.open(io.BytesIO(encoded), "r") as container:
            frames = list(container.decode(audio=0))
    except (av.FFmpegError, IndexError):
        return 0.0
    return float(sum(frame.samples / frame.sample_rate for frame in frames))
