"""Every registered format: duration, latency, chunking, resources and intelligibility."""

from __future__ import annotations

import gc
import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import av
import numpy as np
import psutil
import pytest

from streaming_server.audio.containers import AAC_BITRATE_BPS, MP3_BITRATE_BPS, Mp3Encoder
from streaming_server.audio.encoders import FORMATS, PCM_HZ, AudioEncoder, PcmEncoder
from streaming_server.audio.pcm import Resampler, to_float32
from streaming_server.domain import IntSamples
from tests.support.decoders import decodable_s, ffmpeg_decode, ffprobe
from tests.support.digits import STRINGS, agreement, recognise_digits, say, say_digits

RATES_HZ = (16000, 22050, 24000, 44100, 48000)


@cache
def speech(rate_hz: int) -> IntSamples:
    """About 2.5 s of speech without leading silence."""
    samples, own_hz = say("The quick brown fox jumps over the lazy dog.")
    samples = samples[np.flatnonzero(np.abs(samples) > 500)[0] :]
    return samples if own_hz == rate_hz else resampled(samples, own_hz, rate_hz)


def resampled(samples: IntSamples, from_hz: int, to_hz: int) -> IntSamples:
    resampler = Resampler(from_hz, to_hz)
    return np.concatenate([resampler.push(samples), resampler.finish()])


def encode(encoder: AudioEncoder, samples: IntSamples, rate_hz: int, sizes: Iterator[int] | None = None) -> bytes:
    """Encode a complete file in pieces of these sizes."""
    encoded = encoder.start(rate_hz)
    begin = 0
    while begin < samples.size:
        size = next(sizes) if sizes else samples.size
        encoded += encoder.push(samples[begin : begin + size])
        begin += size
    return encoded + encoder.finish()


def decode(name: str, encoded: bytes, rate_hz: int) -> IntSamples:
    """At ``rate_hz``."""
    if name == "pcm":
        return resampled(ffmpeg_decode(encoded, PCM_HZ, raw=True), PCM_HZ, rate_hz)
    return ffmpeg_decode(encoded, rate_hz)


def extra(name: str, rate_hz: int) -> tuple[float, float]:
    """Minimum and maximum number of additional decoded samples: the codec's delay and padding."""
    if name not in ("mp3", "aac"):
        # Where the rate is converted there and back, each way rounds up.
        exact = name in ("flac", "wav") or rate_hz == PCM_HZ or (name != "pcm" and rate_hz in (16000, 48000))
        return 0, 0 if exact else 2
    coded_hz = PCM_HZ if rate_hz == 16000 else rate_hz
    delay, frame = (1024, 1024) if name == "aac" else (1105, 1152 if coded_hz > 24000 else 576)
    return delay * rate_hz / coded_hz - 1, (delay + frame) * rate_hz / coded_hz + 1


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("name", FORMATS)
def test_length(name: str, rate_hz: int) -> None:
    samples = speech(rate_hz)
    decoded = decode(name, encode(FORMATS[name].create(), samples, rate_hz), rate_hz)
    least, most = extra(name, rate_hz)
    assert least <= decoded.size - samples.size <= most


@pytest.mark.parametrize("name", FORMATS)
def test_any_split_is_the_same_audio(name: str) -> None:
    samples = speech(22050)[:22050]
    whole = encode(FORMATS[name].create(), samples, 22050)
    for sizes in ([1, 2, 3, 5], [441], [997, 1, 4000], [0, 7000]):
        split = encode(FORMATS[name].create(), samples, 22050, itertools.cycle(sizes))
        np.testing.assert_array_equal(decode(name, split, 22050), decode(name, whole, 22050))


HELD_BACK_MS = {"ogg": 20, "wav": 1, "pcm": 1, "mp3": 80, "aac": 100, "flac": 20, "webm": 60}
CONVERSION_MS = 1
"""The resampler's own delay, rounded up."""


@pytest.mark.parametrize("rate_hz", [22050, 24000, 48000])
@pytest.mark.parametrize("name", FORMATS)
def test_first_audio_is_early(name: str, rate_hz: int) -> None:
    """Pieces of about 1 ms until bytes come out; what came out then can be decoded where the format shows itself."""
    encoder = FORMATS[name].create()
    samples = speech(rate_hz)
    encoded = encoder.start(rate_hz)
    piece, fed_ms, step = b"", 0.0, rate_hz // 1000
    for begin in range(0, samples.size, step):
        piece = encoder.push(samples[begin : begin + step])
        fed_ms = (begin + step) * 1000 / rate_hz
        if piece:
            break
    assert piece
    assert fed_ms <= HELD_BACK_MS[name] + CONVERSION_MS
    if name in ("ogg", "flac", "webm", "wav"):
        assert decodable_s(encoded + piece) > 0


@pytest.mark.parametrize("name", ["mp3", "aac", "flac", "webm", "ogg"])
def test_what_is_out_keeps_up_with_what_is_in(name: str) -> None:
    """Little is buffered: after half of the speech, almost half of it is decodable."""
    samples = speech(22050)
    encoder = FORMATS[name].create()
    encoded = encoder.start(22050)
    half = samples.size // 2
    for begin in range(0, half, 441):
        encoded += encoder.push(samples[begin : begin + 441])
    encoded += encoder.flush()
    assert decodable_s(encoded) > half / 22050 - 0.15


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("ogg", "opus", "ogg"),
        ("webm", "opus", "matroska,webm"),
        ("mp3", "mp3", "mp3"),
        ("aac", "aac", "aac"),
        ("flac", "flac", "flac"),
        ("wav", "pcm_s16le", "wav"),
    ],
)
def test_is_what_its_media_type_says(name: str, codec: str, container: str) -> None:
    encoded = encode(FORMATS[name].create(), speech(24000), 24000)
    found = ffprobe(encoded)
    assert (found["codec_name"], found["format_name"], found["channels"]) == (codec, container, "1")


def test_registry() -> None:
    assert {name: form.media_type for name, form in FORMATS.items()} == {
        "ogg": "audio/ogg",
        "webm": "audio/webm",
        "mp3": "audio/mpeg",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "wav": "audio/wav",
        "pcm": "audio/pcm",
    }
    for form in FORMATS.values():
        least = {"bitrate_bps": 64000, "complexity": 0}
        encoder = form.create(**{option: least[option] for option in form.options})
        assert encoder.media_type == form.media_type
        assert encode(encoder, speech(22050), 22050)


def test_native_raw_stream_keeps_the_rate() -> None:
    samples = speech(22050)
    encoder = PcmEncoder()
    assert encoder.media_type == "application/octet-stream"
    assert encode(encoder, samples, 22050) == samples.tobytes()


def test_pcm_is_always_24_khz() -> None:
    samples = speech(22050)
    encoded = encode(FORMATS["pcm"].create(), samples, 22050)
    assert len(encoded) == 2 * -(-samples.size * 24000 // 22050)
    assert encode(FORMATS["pcm"].create(), speech(24000), 24000) == speech(24000).tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_no_samples_are_a_silent_file(name: str) -> None:
    encoded = encode(FORMATS[name].create(), np.empty(0, np.int16), 22050)
    if name == "pcm":
        assert encoded == b""
    elif name in ("wav", "ogg"):
        assert ffprobe(encoded)["channels"] == "1"
        assert decodable_s(encoded) == 0
    else:
        decoded = ffmpeg_decode(encoded, 22050)
        assert 0 < decoded.size < 22050 // 5
        assert np.abs(decoded).max() <= 1


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("count", [1, 100, 500, 1153])
def test_very_short(name: str, count: int) -> None:
    samples = speech(22050)[:count]
    decoded = decode(name, encode(FORMATS[name].create(), samples, 22050), 22050)
    assert count - 1 <= decoded.size <= count + 22050 // 8


@pytest.mark.parametrize("name", ["ogg", "webm", "mp3", "aac"])
def test_bitrate_is_heeded(name: str) -> None:
    low, high = (len(encode(FORMATS[name].create(bitrate_bps=rate), speech(24000), 24000)) for rate in (32000, 96000))
    assert low * 1.8 < high


@pytest.mark.parametrize("name", ["ogg", "webm"])
def test_complexity_is_heeded(name: str) -> None:
    low, high = (
        decode(name, encode(FORMATS[name].create(complexity=value), speech(24000), 24000), 24000) for value in (0, 10)
    )
    assert not np.array_equal(low, high)


@pytest.mark.parametrize("name", FORMATS)
def test_headers_are_small(name: str) -> None:
    """They precede the first audio on the wire."""
    assert len(FORMATS[name].create().start(22050)) < 400


def test_mp3_is_nothing_but_frames_that_stand_alone() -> None:
    encoded = encode(Mp3Encoder(), speech(22050), 22050)
    with av.open(io.BytesIO(encoded), "r") as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    assert b"".join(packets) == encoded
    # The byte after the header says how far back a frame's data begin.
    assert {packet[:2] + packet[4:5] for packet in packets} == {b"\xff\xf3\x00"}


@pytest.mark.parametrize("name", ["ogg", "webm"])
def test_most_opus_allows(name: str) -> None:
    encoded = encode(FORMATS[name].create(bitrate_bps=512000), speech(24000), 24000)
    assert ffmpeg_decode(encoded, 24000).size == speech(24000).size


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mp3", {"bitrate_bps": MP3_BITRATE_BPS.start - 1}),
        ("mp3", {"bitrate_bps": MP3_BITRATE_BPS.stop}),
        ("aac", {"bitrate_bps": AAC_BITRATE_BPS.stop}),
        ("webm", {"bitrate_bps": 7999}),
        ("webm", {"complexity": 11}),
    ],
)
def test_refuses_what_the_codec_lacks(name: str, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        FORMATS[name].create(**options)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("bitrate_bps", [MP3_BITRATE_BPS.start, MP3_BITRATE_BPS.stop - 1])
def test_mp3_has_the_bitrate_at_every_rate(bitrate_bps: int, rate_hz: int) -> None:
    encoded = encode(Mp3Encoder(bitrate_bps), speech(rate_hz), rate_hz)
    seconds = ffmpeg_decode(encoded, 48000).size / 48000
    assert len(encoded) * 8 / seconds == pytest.approx(bitrate_bps, rel=0.05)


def test_flac_is_without_loss() -> None:
    samples = speech(22050)
    np.testing.assert_array_equal(decode("flac", encode(FORMATS["flac"].create(), samples, 22050), 22050), samples)


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("name", FORMATS)
def test_abandoned_encoders_leave_nothing(name: str) -> None:
    """Without the garbage collector: a server's may come late, as little Python memory holds much of FFmpeg's."""

    def abandon(count: int) -> None:
        for _ in range(count):
            encoder = FORMATS[name].create()
            encoder.start(22050)
            encoder.push(speech(22050)[:8000])

    process = psutil.Process()
    abandon(20)
    with no_collector():
        before = process.num_threads(), process.num_fds(), process.memory_info().rss
        abandon(200)
        after = process.num_threads(), process.num_fds(), process.memory_info().rss
    # Other tests' servers in this process may begin or end a few.
    assert after[0] - before[0] < 20
    assert after[1] - before[1] < 20
    assert after[2] - before[2] < 8 * 1024 * 1024


@pytest.mark.parametrize("name", ["webm"])  # the others are heard in tests/live/test_openai.py
def test_the_ear_hears_the_right_digits(name: str) -> None:
    right, wrong, backwards = [], [], []
    for digits, others in zip(STRINGS, (*STRINGS[1:], STRINGS[0]), strict=True):
        samples, rate_hz = say_digits(digits)
        encoded = encode(FORMATS[name].create(), samples, rate_hz, itertools.repeat(441))
        decoded = to_float32(decode(name, encoded, rate_hz))
        heard = recognise_digits(decoded, rate_hz, len(digits))
        right.append(agreement(heard, digits))
        wrong.append(agreement(heard, others))
        backwards.append(agreement(recognise_digits(decoded[::-1], rate_hz, len(digits)), digits))
    assert np.mean(right) >= 0.8
    assert np.mean(wrong) <= 0.2
    assert np.mean(backwards) <= 0.2
