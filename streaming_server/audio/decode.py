"""Reference audio of any format → mono float32. This module does not know engines or voices' names."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from streaming_server.domain import FloatSamples
from streaming_server.errors import VoiceUnreadable


def decode_native(path: Path) -> tuple[FloatSamples, int]:
    """Mono samples at the file's own rate, and that rate in Hz.

    Raises:
        VoiceUnreadable: the file holds no audio that can be decoded.
    """
    try:
        with av.open(str(path)) as container:
            rate = container.streams.audio[0].rate
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
            frames += resampler.resample(None)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise VoiceUnreadable(path.name) from error
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32), rate
