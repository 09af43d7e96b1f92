"""Encoders of the formats that FFmpeg makes: MP3, AAC in ADTS, FLAC and Opus in WebM, through PyAV.

The muxers write to a sink that cannot seek. They therefore emit each packet at once, omit what would be filled in later
(MP3's info frame), and write WebM as a live stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import av
import numpy as np
from av.audio.stream import AudioStream

from streaming_server.audio import opus
from streaming_server.audio.pcm import Resampler
from streaming_server.domain import IntSamples

MP3_BITRATE_BPS = range(32000, 160001)
"""Bit rates common to MPEG-1 and MPEG-2 layer III; a value between two of them is rounded to the nearest."""
_MPEG_1_HZ, _MPEG_1_BITRATE_BPS = 32000, range(32000, 320001)
AAC_BITRATE_BPS = range(16000, 128001)
WEBM_MAX_BPS = 256000
"""The maximum of FFmpeg's Opus wrapper for one channel; libopus itself allows more."""
_FALLBACK_HZ = 24000


class _Sink:
    """Collects a muxer's output. Without ``seek`` the muxer writes as for a pipe."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class ContainerEncoder:
    """An `AudioEncoder` over one FFmpeg codec and muxer, which a subclass names.

    A stream without any samples becomes 20 ms of silence, as none of these formats has a valid file of no audio.
    """

    media_type: str
    _muxer: ClassVar[str]
    _muxer_options: ClassVar[Mapping[str, str]] = MappingProxyType({})
    _codec: ClassVar[str]
    _sample_format: ClassVar[str]
    _rates_hz: ClassVar[tuple[int, ...]] = ()
    """Sample rates that are encoded directly; others are resampled to 24 kHz. Empty: all rates are."""

    def __init__(
        self, bitrate_bps: int = 0, codec_options: Mapping[str, str] | None = None, rate_hz: int | None = None
    ) -> None:
        """``rate_hz``: the rate to resample to; None keeps the stream's own where the format has it."""
        self._wanted_hz = rate_hz
        self._bitrate_bps = bitrate_bps
        self._codec_options = dict(codec_options or {})

    def start(self, sample_rate_hz: int) -> bytes:
        is_encodable = not self._rates_hz or sample_rate_hz in self._rates_hz
        self._rate_hz = self._wanted_hz or (sample_rate_hz if is_encodable else _FALLBACK_HZ)
        is_kept = self._rate_hz == sample_rate_hz
        self._resampler = None if is_kept else Resampler(sample_rate_hz, self._rate_hz)
        self._silent = True
        self._sink = _Sink()
        self._container = av.open(self._sink, "w", format=self._muxer, options=dict(self._muxer_options))
        stream = self._container.add_stream(self._codec, rate=self._rate_hz, options=self._options())
        assert isinstance(stream, AudioStream)
        self._stream = stream
        self._stream.layout = "mono"
        self._stream.format = self._sample_format
        self._stream.bit_rate = self._bitrate_bps
        self._container.start_encoding()
        return self._sink.take()

    def push(self, samples: IntSamples) -> bytes:
        return self._encode(self._resampler.push(samples) if self._resampler else samples)

    def flush(self) -> bytes:
        return b""

    def finish(self) -> bytes:
        pieces = [self._encode(self._resampler.finish())] if self._resampler else []
        if self._silent:
            pieces.append(self._encode(np.zeros(self._rate_hz // 50, np.int16)))
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return b"".join([*pieces, self._sink.take()])

    def __del__(self) -> None:
        # Container and stream refer to each other; only closing releases them without the garbage collector.
        if container := self.__dict__.get("_container"):
            container.close()

    def _options(self) -> dict[str, str]:
        """Options of the codec, chosen when the rate is known."""
        return self._codec_options

    def _encode(self, samples: IntSamples) -> bytes:
        if not samples.size:
            return b""
        self._silent = False
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = self._rate_hz
        self._container.mux(self._stream.encode(frame))
        return self._sink.take()


class Mp3Encoder(ContainerEncoder):
    """MPEG layer III without tags and without a bit reservoir: every frame is independent.

    Decoded it is longer: 1105 samples of delay come first, and the end is filled up to a whole frame.
    """

    media_type = "audio/mpeg"
    _muxer = "mp3"
    _muxer_options: ClassVar = {"id3v2_version": "0"}
    _codec = "libmp3lame"
    _sample_format = "s16p"
    _rates_hz = (22050, 24000, 32000, 44100, 48000)

    def __init__(self, bitrate_bps: int = 64000, rate_hz: int | None = None) -> None:
        """``rate_hz``: resample to this rate; None keeps the stream's own.

        Raises:
            ValueError: a bitrate outside `MP3_BITRATE_BPS`, which MPEG-1's rates exceed.
        """
        is_mpeg_1 = rate_hz is not None and rate_hz >= _MPEG_1_HZ
        _check_bitrate(bitrate_bps, _MPEG_1_BITRATE_BPS if is_mpeg_1 else MP3_BITRATE_BPS)
        super().__init__(bitrate_bps, {"reservoir": "0"}, rate_hz)


class AacEncoder(ContainerEncoder):
    """AAC-LC in ADTS frames.

    Decoded it is longer: 1024 samples of delay come first, and the end is filled up to a whole frame of 1024.
    """

    media_type = "audio/aac"
    _muxer = "adts"
    _codec = "aac"
    _sample_format = "fltp"
    # A frame has 1024 samples at any rate, so a low rate would add delay.
    _rates_hz = (22050, 24000, 32000, 44100, 48000)

    def __init__(self, bitrate_bps: int = 64000) -> None:
        """
        Raises:
            ValueError: a bitrate outside `AAC_BITRATE_BPS`.
        """
        _check_bitrate(bitrate_bps, AAC_BITRATE_BPS)
        super().__init__(bitrate_bps)


class FlacEncoder(ContainerEncoder):
    """FLAC in frames of 20 ms, without loss and exact to the sample."""

    media_type = "audio/flac"
    _muxer = "flac"
    # The muxer would reserve 8 KiB for tags that it writes at the end, which needs seeking.
    _muxer_options: ClassVar = {"metadata_header_padding": "0"}
    _codec = "flac"
    _sample_format = "s16"

    def __init__(self) -> None:
        super().__init__()

    def _options(self) -> dict[str, str]:
        return {"frame_size": str(self._rate_hz // 50)}


class WebmOpusEncoder(ContainerEncoder):
    """Opus in WebM for MediaSource: one cluster a packet. Exact to the sample for audio of at least 20 ms."""

    media_type = "audio/webm"
    _muxer = "webm"
    _muxer_options: ClassVar = {"cluster_time_limit": "20"}
    _codec = "libopus"
    _sample_format = "s16"
    _rates_hz = opus.SAMPLE_RATES_HZ

    def __init__(self, bitrate_bps: int = 32000, complexity: int = 10) -> None:
        """Above `WEBM_MAX_BPS`, that is what is used.

        Raises:
            ValueError: a bitrate or complexity that libopus does not have.
        """
        _check_bitrate(bitrate_bps, opus.BITRATE_BPS)
        if complexity not in opus.COMPLEXITY:
            raise ValueError(f"complexity {complexity} is outside 0-10")
        super().__init__(min(bitrate_bps, WEBM_MAX_BPS), {"compression_level": str(complexity)})


def _check_bitrate(bitrate_bps: int, valid: range) -> None:
    if bitrate_bps not in valid:
        raise ValueError(f"bitrate {bitrate_bps} is outside {valid.start}-{valid.stop - 1} bit/s")
