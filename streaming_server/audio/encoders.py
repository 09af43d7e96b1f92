"""Encoders: 16-bit samples to the bytes of a file format, piece by piece."""

from __future__ import annotations

import secrets
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

from streaming_server import __version__
from streaming_server.audio import opus
from streaming_server.audio.containers import AacEncoder, FlacEncoder, Mp3Encoder, WebmOpusEncoder
from streaming_server.audio.ogg import OpusPages
from streaming_server.audio.pcm import Resampler
from streaming_server.domain import IntSamples

_UNKNOWN_SIZE = 0xFFFFFFFF
_WAV_HEADER_BYTES = 44
_MAX_AHEAD = 4
"""Maximum number of parameter sets for which parts are kept."""


class AudioEncoder(Protocol):
    """Mono 16-bit samples of one rate in, one stream of bytes out."""

    media_type: str

    def start(self, sample_rate_hz: int) -> bytes:
        """Begin a stream; returns the header, which is best sent with the first audio."""

    def push(self, samples: IntSamples) -> bytes:
        """Encode samples, shape ``(n,)``; returns the bytes that are ready."""

    def flush(self) -> bytes:
        """Return bytes that are held back only to save overhead."""

    def finish(self) -> bytes:
        """End the stream; returns the remaining bytes."""


class PcmEncoder:
    """Raw signed 16-bit little-endian samples."""

    def __init__(self, rate_hz: int | None = None) -> None:
        """``rate_hz``: resample to this rate, for formats that do not state one; None keeps the stream's own."""
        self.media_type = "application/octet-stream" if rate_hz is None else "audio/pcm"
        self._rate_hz = rate_hz

    def start(self, sample_rate_hz: int) -> bytes:
        rate_hz = self._rate_hz or sample_rate_hz
        self._resampler = Resampler(sample_rate_hz, rate_hz) if rate_hz != sample_rate_hz else None
        return b""

    def push(self, samples: IntSamples) -> bytes:
        return self._encoded(self._resampler.push(samples) if self._resampler else samples)

    def flush(self) -> bytes:
        return b""

    def finish(self) -> bytes:
        return self._encoded(self._resampler.finish()) if self._resampler else b""

    def _encoded(self, samples: IntSamples) -> bytes:
        return samples.astype("<i2", copy=False).tobytes()


class WavEncoder:
    """RIFF WAVE of a length that is not known in advance."""

    media_type = "audio/wav"

    def __init__(self, rate_hz: int | None = None) -> None:
        """``rate_hz``: as for `PcmEncoder`."""
        self._rate_hz = rate_hz
        self._samples = PcmEncoder(rate_hz)

    def start(self, sample_rate_hz: int) -> bytes:
        self._file_hz = self._rate_hz or sample_rate_hz
        return wav_header(self._file_hz, None) + self._samples.start(sample_rate_hz)

    def push(self, samples: IntSamples) -> bytes:
        return self._samples.push(samples)

    def flush(self) -> bytes:
        return b""

    def finish(self) -> bytes:
        return self._samples.finish()

    def complete_header(self, size: int) -> bytes:
        """Return the header of a complete file of ``size`` bytes."""
        return wav_header(self._file_hz, (size - _WAV_HEADER_BYTES) // 2)


def complete_header(encoder: AudioEncoder, size: int) -> bytes:
    """Return what a complete file of ``size`` bytes begins with, if that differs from a stream; else no bytes."""
    return encoder.complete_header(size) if isinstance(encoder, WavEncoder) else b""


class _OpusParts:
    """A packet encoder for samples of one rate, with the resampler that it needs for others."""

    _ahead: ClassVar[dict[tuple[int, ...], _OpusParts]] = {}
    _lock = threading.Lock()

    def __init__(self, sample_rate_hz: int, bitrate_bps: int, complexity: int) -> None:
        rate_hz = sample_rate_hz if sample_rate_hz in opus.SAMPLE_RATES_HZ else 24000
        self.resampler = Resampler(sample_rate_hz, rate_hz) if rate_hz != sample_rate_hz else None
        self.packets = opus.PacketEncoder(rate_hz, bitrate_bps, complexity)

    @classmethod
    def take(cls, *key: int) -> _OpusParts:
        """Return parts for one stream: those created ahead for these parameters, if there are any, else new ones."""
        with cls._lock:
            made = cls._ahead.pop(key, None)
        return made or cls(*key)

    @classmethod
    def make_ahead(cls, *key: int) -> None:
        """Create the parts for the next stream, unless they exist: they take a tenth of the time to its first audio."""
        if key in cls._ahead:
            return
        made = cls(*key)
        with cls._lock:
            cls._ahead[key] = made
            if len(cls._ahead) > _MAX_AHEAD:
                del cls._ahead[next(iter(cls._ahead))]


class OggOpusEncoder:
    """Ogg Opus (RFC 7845), exact to the sample; sample rates that Opus lacks are resampled to 24 kHz."""

    media_type = "audio/ogg"

    def __init__(self, bitrate_bps: int = 32000, complexity: int = 10, serial: int | None = None) -> None:
        """``serial``: the serial number of the Ogg stream; random by default."""
        self._bitrate_bps = bitrate_bps
        self._complexity = complexity
        self._serial = secrets.randbits(32) if serial is None else serial

    def start(self, sample_rate_hz: int) -> bytes:
        self._parameters = sample_rate_hz, self._bitrate_bps, self._complexity
        self._pushes = 0
        parts = _OpusParts.take(*self._parameters)
        self._resampler, self._packets = parts.resampler, parts.packets
        self._pages = OpusPages(
            opus.head(self._packets.pre_skip, sample_rate_hz),
            opus.tags(opus.library_version(), {"ENCODER": f"streaming-server {__version__}"}),
            opus.PACKET_SAMPLES,
            self._serial,
        )
        return self._pages.start()

    def push(self, samples: IntSamples) -> bytes:
        self._pushes += 1
        if self._pushes == 2:  # after the first audio; many clients disconnect before the end
            _OpusParts.make_ahead(*self._parameters)
        if self._resampler:
            samples = self._resampler.push(samples)
        return self._pages.push(self._packets.push(samples))

    def flush(self) -> bytes:
        return self._pages.flush()

    def finish(self) -> bytes:
        pages = self._pages.push(self._packets.push(self._resampler.finish())) if self._resampler else b""
        return pages + self._pages.finish(*self._packets.finish())


def wav_header(sample_rate_hz: int, samples: int | None) -> bytes:
    """The 44-byte header of 16-bit mono samples; ``samples`` is None if their number is not known yet."""
    data = _UNKNOWN_SIZE if samples is None else min(samples * 2, _UNKNOWN_SIZE - 36)
    riff = _UNKNOWN_SIZE if samples is None else data + 36
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, sample_rate_hz, sample_rate_hz * 2, 2, 16, b"data", data),
    )


@dataclass(frozen=True, slots=True)
class Format:
    """One way to encode speech."""

    media_type: str
    create: Callable[..., AudioEncoder]
    """Returns an encoder. Its keywords are ``options``: optional integers.

    Raises ValueError for a value outside the format's range."""
    options: frozenset[str] = frozenset()


_BITRATE = frozenset({"bitrate_bps"})
_OPUS = _BITRATE | {"complexity"}
PCM_HZ = 24000
"""Sample rate of the format ``pcm``, independent of the engine's."""

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "ogg": Format("audio/ogg", OggOpusEncoder, _OPUS),
        "webm": Format("audio/webm", WebmOpusEncoder, _OPUS),
        "mp3": Format("audio/mpeg", Mp3Encoder, _BITRATE),
        "aac": Format("audio/aac", AacEncoder, _BITRATE),
        "flac": Format("audio/flac", FlacEncoder),
        "wav": Format("audio/wav", WavEncoder),
        "pcm": Format("audio/pcm", lambda: PcmEncoder(PCM_HZ)),
    }
)
"""Formats by name."""
