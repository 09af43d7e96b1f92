"""Telephone formats: G.711 µ-law and A-law at 8 kHz."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from streaming_server.audio.encoders import PcmEncoder
from streaming_server.domain import IntSamples

RATE_HZ = 8000
Law = Literal["ulaw", "alaw"]


class G711Encoder(PcmEncoder):
    """One byte a sample, 8000 samples a second, without a header."""

    def __init__(self, law: Law) -> None:
        super().__init__(RATE_HZ)
        self.media_type = "audio/basic"
        self._codes = _codes(law)

    def _encoded(self, samples: IntSamples) -> bytes:
        return self._codes[samples.view(np.uint16)].tobytes()


@cache
def _codes(law: Law) -> npt.NDArray[np.uint8]:
    """The code of every 16-bit sample, shape ``(65536,)``, by its bits (ITU-T G.711, tables 1 and 2)."""
    samples = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32)
    if law == "ulaw":
        sign = np.where(samples < 0, 0x80, 0)
        magnitude = np.minimum(np.abs(samples), 32635) + 132
        exponent = np.log2(magnitude).astype(np.int32) - 7
        mantissa = magnitude >> (exponent + 3) & 0x0F
        inverted = 0xFF
    else:
        sign = np.where(samples < 0, 0, 0x80)
        magnitude = np.where(samples < 0, ~samples, samples)
        exponent = np.maximum(np.log2(np.maximum(magnitude, 1)).astype(np.int32) - 7, 0)
        mantissa = magnitude >> np.maximum(exponent + 3, 4) & 0x0F
        inverted = 0x55
    codes: npt.NDArray[np.uint8] = ((sign | exponent << 4 | mantissa) ^ inverted).astype(np.uint8)
    return codes
