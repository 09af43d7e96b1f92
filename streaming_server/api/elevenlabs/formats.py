"""The values of ``output_format``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

from streaming_server.audio.containers import Mp3Encoder
from streaming_server.audio.encoders import AudioEncoder, OggOpusEncoder, PcmEncoder, WavEncoder
from streaming_server.audio.g711 import G711Encoder
from streaming_server.errors import InvalidRequest

DEFAULT_FORMAT = "mp3_44100_128"
_RATES_HZ = (8000, 16000, 22050, 24000, 32000, 44100, 48000)
_MP3 = ((22050, 32), (24000, 48), *((44100, kbps) for kbps in (32, 64, 96, 128, 192)))


def _formats() -> Iterator[tuple[str, Callable[[], AudioEncoder]]]:
    for rate_hz, kbps in _MP3:
        yield f"mp3_{rate_hz}_{kbps}", partial(Mp3Encoder, kbps * 1000, rate_hz)
    yield "mp3_44100", partial(Mp3Encoder, 128000, 44100)
    for rate_hz in _RATES_HZ:
        yield f"pcm_{rate_hz}", partial(PcmEncoder, rate_hz)
        yield f"wav_{rate_hz}", partial(WavEncoder, rate_hz)
    for kbps in (32, 64, 96, 128, 192):
        yield f"opus_48000_{kbps}", partial(OggOpusEncoder, kbps * 1000)
    yield "ulaw_8000", partial(G711Encoder, "ulaw")
    yield "alaw_8000", partial(G711Encoder, "alaw")


OUTPUT_FORMATS: Mapping[str, Callable[[], AudioEncoder]] = MappingProxyType(dict(_formats()))
"""By name, what makes a new encoder."""


def encoder_of(name: str) -> AudioEncoder:
    """
    Raises:
        InvalidRequest: there is no such format.
    """
    if name not in OUTPUT_FORMATS:
        valid = ", ".join(OUTPUT_FORMATS)
        raise InvalidRequest(
            f"output_format {name[:40]!r} is not valid; the formats are {valid}", "output_format", "query"
        )
    return OUTPUT_FORMATS[name]()
