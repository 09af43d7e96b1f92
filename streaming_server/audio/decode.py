"""Reference audio of any format to mono float samples, through PyAV.

The files are the operator's, or have passed `jobs.examiner`, which bounds what they take to decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler

from streaming_server.audio.pcm import amplitude_problem
from streaming_server.audio.probe import NO_PICTURES
from streaming_server.domain import FloatSamples
from streaming_server.errors import VoiceFileMissing, VoiceUnreadable

_FORMATS = "wav,w64,mp3,flac,mov,ogg,aac,matroska,aiff,caf,au,amr"


def decode_native(path: Path, limit_s: float | None = None) -> tuple[FloatSamples, int]:
    """Decode a file at its own rate.

    Args:
        path: wav, mp3, flac, m4a, ogg, opus and a few more that hold nothing but sound.
        limit_s: stop after this many seconds.

    Returns:
        Mono samples, shape ``(n,)``, channels averaged; their rate in Hz.

    Raises:
        VoiceFileMissing: there is no such file.
        VoiceUnreadable: it holds no audio that can be decoded, or samples that are not finite or far beyond full scale.
    """
    return _decode(path, None, limit_s)


def decode_mono(path: Path, rate_hz: int, limit_s: float | None = None) -> FloatSamples:
    """As `decode_native`, resampled to ``rate_hz``."""
    return _decode(path, rate_hz, limit_s)[0]


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise VoiceFileMissing(path.name) from error
    except (av.FFmpegError, ValueError, AttributeError) as error:  # a stream without a decoder has no rate
        raise VoiceUnreadable(path.name) from error


def _decode(path: Path, rate_hz: int | None, limit_s: float | None) -> tuple[FloatSamples, int]:
    parts: list[FloatSamples] = []
    count = 0
    # Other formats are not recordings; playlists would open further files and hosts.
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"} | NO_PICTURES
    with _translated(path), av.open(path, "r", options=options) as container:
        if not container.streams.audio:
            raise VoiceUnreadable(path.name)
        rate = rate_hz or container.streams.audio[0].rate
        resampler = AudioResampler(format="flt", layout="mono", rate=rate)
        for frame in container.decode(audio=0):
            frames = resampler.resample(frame)
            parts.extend(part.to_ndarray()[0] for part in frames)
            count += sum(part.samples for part in frames)
            if limit_s is not None and count >= limit_s * rate:
                break
        parts.extend(part.to_ndarray()[0] for part in resampler.resample(None))
    if not parts:
        raise VoiceUnreadable(path.name)
    samples = np.concatenate(parts)
    if problem := amplitude_problem(samples):
        raise VoiceUnreadable(path.name, problem)
    return samples, rate
