"""Opus packets (RFC 6716) through libopus, and the two headers of Ogg Opus (RFC 7845)."""

from __future__ import annotations

import ctypes
import ctypes.util
import struct
from pathlib import Path

import av
import numpy as np

from streaming_server.domain import IntSamples

SAMPLE_RATES_HZ = (8000, 12000, 16000, 24000, 48000)
CLOCK_HZ = 48000
"""Granule positions and the pre-skip count samples at this rate, whatever the input's."""
PACKET_SAMPLES = 960
"""20 ms at `CLOCK_HZ`."""
BITRATE_BPS = range(8000, 512001)
COMPLEXITY = range(11)
_FIRST_COMPLEXITY = 0
"""Complexity of the first packet, which is usually silence: encoding it takes a third of the time."""
_MAX_PACKET_BYTES = 4000


def _find_libopus(name: str) -> str | None:
    """The libopus of the PyAV wheel, else the system's."""
    bundled = sorted((Path(av.__file__).parent.parent / "av.libs").glob("libopus-*.so*"))
    return str(bundled[0]) if bundled else _find_library(name)


# opuslib looks for its library once, at import, through this function alone.
_find_library = ctypes.util.find_library
ctypes.util.find_library = _find_libopus
try:
    import opuslib
    from opuslib import api
    from opuslib.api import ctl, encoder, info
except Exception as error:
    raise ImportError(
        "no libopus found: install the system's package (Debian: libopus0) or the PyAV wheel that carries it"
    ) from error
finally:
    ctypes.util.find_library = _find_library

# The control call is variadic: on arm64 its fixed arguments must be declared or the rest is passed wrongly.
encoder.libopus_ctl.argtypes = (encoder.EncoderPointer, ctypes.c_int)
# opuslib's own prototype wants a pointer object for each frame; plain addresses save a twentieth of a fast encoding.
_opus_encode = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int32
)(("opus_encode", api.libopus))


def library_version() -> str:
    """Returns for example ``libopus 1.6.1``."""
    return str(info.get_version_string().decode())


class PacketEncoder:
    """Encodes mono samples to 20 ms packets and counts samples, so that the decoded length is exact."""

    def __init__(self, sample_rate_hz: int, bitrate_bps: int, complexity: int) -> None:
        """
        Raises:
            ValueError: a rate, bitrate or complexity that libopus does not have.
        """
        if sample_rate_hz not in SAMPLE_RATES_HZ:
            raise ValueError(f"sample rate {sample_rate_hz} Hz is none of {SAMPLE_RATES_HZ}")
        if bitrate_bps not in BITRATE_BPS:
            raise ValueError(f"bitrate {bitrate_bps} is outside {BITRATE_BPS.start}-{BITRATE_BPS.stop - 1} bit/s")
        if complexity not in COMPLEXITY:
            raise ValueError(f"complexity {complexity} is outside 0-10")
        self._clock_per_sample = CLOCK_HZ // sample_rate_hz
        self._frame = PACKET_SAMPLES // self._clock_per_sample
        self._state = encoder.create_state(sample_rate_hz, 1, opuslib.APPLICATION_AUDIO)
        encoder.encoder_ctl(self._state, ctl.set_bitrate, bitrate_bps)
        encoder.encoder_ctl(self._state, ctl.set_complexity, _FIRST_COMPLEXITY)
        self._complexity = complexity
        self._is_begun = False
        lookahead = int(encoder.encoder_ctl(self._state, ctl.get_lookahead))
        self.pre_skip = lookahead * self._clock_per_sample
        """Samples at 48 kHz that a decoder discards at the start."""
        self._packet = ctypes.create_string_buffer(_MAX_PACKET_BYTES)
        self._packet_address = ctypes.addressof(self._packet)
        self._state_address = ctypes.addressof(self._state.contents)
        self._rest: IntSamples = np.empty(0, np.int16)
        self._taken = 0

    def __del__(self) -> None:
        if state := self.__dict__.pop("_state", None):
            encoder.destroy(state)

    def push(self, samples: IntSamples) -> list[bytes]:
        """Encode all complete frames; the remainder is kept for the next call."""
        self._taken += samples.size
        buffered = np.concatenate([self._rest, samples])
        whole = buffered.size - buffered.size % self._frame
        self._rest = buffered[whole:]
        return self._encode(buffered[:whole])

    def finish(self) -> tuple[list[bytes], int]:
        """Encode the remainder, padded by the look-ahead.

        Returns:
            At least one packet, and the granule position that trims the padding (RFC 7845, section 4.4).
        """
        granule = self.pre_skip + self._taken * self._clock_per_sample
        before = self._taken // self._frame
        frames = -(-granule // PACKET_SAMPLES) - before
        padded = np.zeros(frames * self._frame, np.int16)
        padded[: self._rest.size] = self._rest
        return self._encode(padded), granule

    def _encode(self, samples: IntSamples) -> list[bytes]:
        """Encode samples, shape ``(k * frame,)``: libopus reads a full frame from each address it is given."""
        samples = np.ascontiguousarray(samples)
        first, size, packet = samples.ctypes.data, self._frame, self._packet_address
        packets = []
        for address in range(first, first + samples.nbytes, size * 2):
            length = _opus_encode(self._state_address, address, size, packet, _MAX_PACKET_BYTES)
            if length < 0:
                raise opuslib.OpusError(length)
            packets.append(ctypes.string_at(packet, length))
            if not self._is_begun:
                self._is_begun = True
                encoder.encoder_ctl(self._state, ctl.set_complexity, self._complexity)
        return packets


def head(pre_skip: int, input_rate_hz: int) -> bytes:
    """The identification header, one channel, no gain (RFC 7845, section 5.1)."""
    return struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, pre_skip, input_rate_hz, 0, 0)


def tags(vendor: str, comments: dict[str, str]) -> bytes:
    """The comment header (RFC 7845, section 5.2)."""
    fields = [f"{key}={value}".encode() for key, value in comments.items()]
    packed = [struct.pack("<I", len(field)) + field for field in fields]
    name = vendor.encode()
    return b"OpusTags" + struct.pack("<I", len(name)) + name + struct.pack("<I", len(packed)) + b"".join(packed)
