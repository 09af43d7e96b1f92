from __future__ import annotations

import ctypes
import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_server.audio.ogg import OggStream, OpusPages, checksum, page_sizes


def pages_of(data: bytes) -> list[tuple[int, int, list[bytes]]]:
    """Return ``(flags, granule, packets)`` of each page, read independently of the package."""
    found: list[tuple[int, int, list[bytes]]] = []
    while data:
        magic, version, flags, granule, _serial, sequence, _crc, count = struct.unpack("<4sBBqIIIB", data[:27])
        assert (magic, version, sequence) == (b"OggS", 0, len(found))
        lacing, packets, offset, packet = data[27 : 27 + count], [], 27 + count, b""
        for size in lacing:
            packet += data[offset : offset + size]
            offset += size
            if size < 255:
                packets.append(packet)
                packet = b""
        found.append((flags, granule, packets))
        data = data[offset:]
    return found


@given(
    st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([0, 1, 254, 255, 256, 509, 510, 511, 1275]), min_size=1, max_size=30),
            st.integers(0, 2**48),
        ),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_pages_are_those_of_libogg_byte_for_byte(serial: int, plan: list[tuple[list[int], int]], random: Any) -> None:
    pages = [([b"the first packet stands alone, at 0"], 0)]
    pages += [([random.randbytes(size) for size in sizes], granule) for sizes, granule in plan]
    ours = OggStream(serial)
    written = [
        ours.page(packets, granule, last=number == len(pages)) for number, (packets, granule) in enumerate(pages, 1)
    ]
    assert written == libogg_pages(serial, pages)


def libogg_pages(serial: int, pages: list[tuple[list[bytes], int]]) -> list[bytes]:
    from pyogg import ogg

    flush = ogg.libogg.ogg_stream_flush_fill
    state, page, packet = ogg.ogg_stream_state(), ogg.ogg_page(), ogg.ogg_packet()
    ogg.ogg_stream_init(ctypes.byref(state), ctypes.c_int(serial))
    written, number = [], 0
    for last, (packets, granule) in zip([*[0] * (len(pages) - 1), 1], pages, strict=True):
        for end, content in zip([*[0] * (len(packets) - 1), last], packets, strict=True):
            kept = ctypes.create_string_buffer(content, len(content)) if content else ctypes.create_string_buffer(1)
            packet.packet = ctypes.cast(kept, type(packet.packet))
            packet.bytes, packet.b_o_s, packet.e_o_s = len(content), int(number == 0), end
            packet.granulepos, packet.packetno = granule, number
            ogg.ogg_stream_packetin(ctypes.byref(state), ctypes.byref(packet))
            number += 1
        while flush(ctypes.byref(state), ctypes.byref(page), 10**6):
            written.append(ctypes.string_at(page.header, page.header_len) + ctypes.string_at(page.body, page.body_len))
    ogg.ogg_stream_clear(ctypes.byref(state))
    return written


def test_checksum_is_the_one_of_rfc_3533() -> None:
    def slow(data: bytes) -> int:
        crc = 0
        for byte in data:
            crc ^= byte << 24
            for _ in range(8):
                crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
        return crc

    for data in (b"", b"\0", b"OggS", bytes(range(256)) * 3):
        assert checksum(data) == slow(data)


def test_a_page_that_is_too_large_is_refused() -> None:
    stream = OggStream(1)
    with pytest.raises(ValueError, match="256"):
        stream.page([b"x" * 255] * 128, 0)
    with pytest.raises(ValueError, match="1 to 255"):
        stream.page([], 0)


def test_pages_are_small_first_and_then_grow() -> None:
    assert list(itertools.islice(page_sizes(), 14)) == [1, 1, 1, 1, 2, 2, 2, 2, 4, 8, 16, 25, 25, 25]
    pages = OpusPages(b"head", b"tags", 960, serial=1)
    data = pages.start() + b"".join(pages.push([bytes([number])]) for number in range(60)) + pages.finish([b"z"], 999)
    found = pages_of(data)
    assert [len(packets) for _, _, packets in found] == [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 8, 16, 21]
    assert [granule // 960 for _, granule, _ in found[2:-1]] == [1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 40]
    assert (found[0][0], found[-1][0], found[-1][1]) == (2, 4, 999)


def test_flush_closes_the_open_page_once() -> None:
    pages = OpusPages(b"head", b"tags", 960, serial=1)
    pages.start()
    pages.push([b"a"] * 4)
    assert pages.push([b"b"]) == b""
    assert pages.flush().endswith(b"b")
    assert pages.flush() == b""
