"""Ogg pages (RFC 3533): lacing, checksum and sequence numbers, and the page sizes of a stream of Opus packets."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain, repeat

_FIRST, _LAST = 0x02, 0x04
_MAX_SEGMENTS = 255
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def checksum(page: bytes) -> int:
    """CRC-32 of RFC 3533, section 6: polynomial 0x04C11DB7, most significant bit first, no inversion.

    zlib's CRC has the same polynomial with the bits the other way round, so mirroring input and result
    yields this one at C speed.
    """
    mirrored = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_REVERSED_BITS), "big")


class OggStream:
    """One logical bitstream: turns packets into numbered pages."""

    def __init__(self, serial: int) -> None:
        """``serial``: the stream's serial number, 0 … 2**32 - 1."""
        self._serial = serial
        self._sequence = 0

    def page(self, packets: Sequence[bytes], granule: int, *, last: bool = False) -> bytes:
        """Write whole packets as one page.

        Args:
            packets: at least one; together at most 255 lacing segments (65 025 bytes).
            granule: position at the end of the last packet, in samples at 48 kHz for Opus.
            last: sets the end-of-stream flag.

        Raises:
            ValueError: the packets do not fit one page.
        """
        lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
        if not 0 < len(lacing) <= _MAX_SEGMENTS:
            raise ValueError(f"a page holds 1 to {_MAX_SEGMENTS} segments, these packets need {len(lacing)}")
        flags = (_FIRST if self._sequence == 0 else 0) | (_LAST if last else 0)
        head = struct.pack("<4sBBqII", b"OggS", 0, flags, granule, self._serial, self._sequence)
        tail = bytes([len(lacing)]) + lacing + b"".join(packets)
        self._sequence += 1
        return head + struct.pack("<I", checksum(head + bytes(4) + tail)) + tail


def page_sizes() -> Iterator[int]:
    """Packets a page: few at first for an early first audio, then more, to reduce the overhead of headers."""
    return chain([1, 1, 1, 1, 2, 2, 2, 2, 4, 8, 16], repeat(25))


class OpusPages:
    """The pages of one Ogg Opus stream (RFC 7845): two header pages, then audio by `page_sizes`."""

    def __init__(self, head: bytes, tags: bytes, packet_samples: int, serial: int) -> None:
        """``packet_samples``: duration of every packet but the trimmed last, in samples at 48 kHz."""
        self._stream = OggStream(serial)
        self._headers = (head, tags)
        self._packet_samples = packet_samples
        self._sizes = page_sizes()
        self._size = next(self._sizes)
        self._pending: list[bytes] = []
        self._granule = 0

    def start(self) -> bytes:
        """The identification and the comment header, each on a page of its own."""
        return b"".join(self._stream.page([header], granule=0) for header in self._headers)

    def push(self, packets: Sequence[bytes]) -> bytes:
        """Append packets; returns the pages that are full."""
        pages = []
        for packet in packets:
            self._pending.append(packet)
            self._granule += self._packet_samples
            if len(self._pending) >= self._size:
                pages.append(self.flush())
        return b"".join(pages)

    def flush(self) -> bytes:
        """Close the open page, if it has packets."""
        if not self._pending:
            return b""
        page = self._stream.page(self._pending, self._granule)
        self._pending.clear()
        self._size = next(self._sizes)
        return page

    def finish(self, packets: Sequence[bytes], granule: int) -> bytes:
        """Write the stream's last packets; ``granule`` below their full duration trims the end."""
        pages = self.push(packets[:-1])
        return pages + self._stream.page([*self._pending, packets[-1]], granule, last=True)
