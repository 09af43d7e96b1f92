from __future__ import annotations

import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_server.audio import opus
from streaming_server.audio.decode import decode_native
from streaming_server.audio.encoders import AudioEncoder, OggOpusEncoder, PcmEncoder, WavEncoder
from streaming_server.audio.pcm import to_int16
from streaming_server.domain import IntSamples
from tests.audio.test_ogg import pages_of
from tests.support.fakes import tone


def speechlike(samples: int, rate_hz: int = 24000) -> IntSamples:
    noise = np.random.default_rng(7).normal(0, 0.02, samples).astype(np.float32)
    return to_int16(tone(samples / rate_hz, 180, rate_hz)[:samples] + noise)


def encode(encoder: AudioEncoder, rate_hz: int, pieces: list[IntSamples]) -> bytes:
    return encoder.start(rate_hz) + b"".join(encoder.push(piece) for piece in pieces) + encoder.finish()


def decoded_by_opusdec(data: bytes, folder: Path, rate_hz: int = 48000) -> IntSamples:
    source, target = folder / "a.opus", folder / "a.wav"
    source.write_bytes(data)
    command = ["opusdec", "--quiet", "--rate", str(rate_hz), "--no-dither", str(source), str(target)]
    subprocess.run(command, check=True, capture_output=True)
    samples, rate = decode_native(target)
    assert rate == rate_hz
    return to_int16(samples)


@settings(max_examples=40)
@given(st.integers(0, 6000), st.lists(st.integers(0, 6000), max_size=12), st.sampled_from([22050, 24000, 48000]))
def test_any_split_of_the_samples_gives_the_same_bytes(length: int, cuts: list[int], rate_hz: int) -> None:
    samples = speechlike(6000)[:length]
    whole = encode(OggOpusEncoder(serial=5), rate_hz, [samples])
    parts = np.split(samples, sorted(cut for cut in cuts if cut < length))
    assert encode(OggOpusEncoder(serial=5), rate_hz, parts) == whole


@pytest.mark.parametrize("rate_hz", [8000, 12000, 16000, 22050, 24000, 44100, 48000])
def test_the_decoded_length_is_that_of_the_input(rate_hz: int, tmp_path: Path) -> None:
    frame = rate_hz // 50
    for length in (0, 1, 2, frame - 1, frame, frame + 1, 7 * frame - rate_hz // 154, 5 * frame + 17, rate_hz):
        data = encode(OggOpusEncoder(), rate_hz, [speechlike(length, rate_hz)])
        inner_hz = rate_hz if rate_hz in opus.SAMPLE_RATES_HZ else 24000
        expected = -(-length * inner_hz // rate_hz) * (48000 // inner_hz)
        assert decoded_by_opusdec(data, tmp_path).size == expected if expected else True
        *_, (flags, granule, _) = pages_of(data)
        assert (flags, granule - 312) == (4, expected)


def test_an_independent_decoder_hears_the_same(tmp_path: Path) -> None:
    samples = speechlike(48000)
    decoded = decoded_by_opusdec(encode(OggOpusEncoder(96000), 24000, np.array_split(samples, 9)), tmp_path, 24000)
    error = decoded.astype(float) - samples
    assert error.std() < 0.06 * samples.std()


def test_opusinfo_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    for length in (1, 24000 * 12):
        path = tmp_path / f"{length}.opus"
        path.write_bytes(encode(OggOpusEncoder(), 24000, [speechlike(length)]))
        report = subprocess.run(["opusinfo", path], check=True, capture_output=True, text=True)
        assert "WARNING" not in report.stdout + report.stderr
        assert "Logical stream 1 ended" in report.stdout


def test_a_lost_page_is_what_opusinfo_would_complain_about(tmp_path: Path) -> None:
    data = encode(OggOpusEncoder(), 24000, [speechlike(24000)])
    first, second = [at for at in range(len(data)) if data.startswith(b"OggS", at)][4:6]
    (tmp_path / "cut.opus").write_bytes(data[:first] + data[second:])
    report = subprocess.run(["opusinfo", tmp_path / "cut.opus"], check=False, capture_output=True, text=True)
    assert "WARNING" in report.stdout + report.stderr


def test_the_first_page_leaves_with_the_first_packet() -> None:
    encoder = OggOpusEncoder()
    assert [granule for _, granule, _ in pages_of(encoder.start(24000))] == [0, 0]
    assert encoder.push(speechlike(479)) == b""
    assert encoder.push(speechlike(1)) != b""


def test_ten_seconds_at_32_kbit_cost_at_most_five_percent_of_ogg() -> None:
    data = encode(OggOpusEncoder(32000), 24000, [speechlike(240000)])
    audio = sum(len(packet) for _, _, packets in pages_of(data)[2:] for packet in packets)
    assert (len(data) - audio) / len(data) <= 0.05


@pytest.mark.parametrize(("bitrate", "complexity"), [(7999, 10), (512001, 10), (32000, -1), (32000, 11)])
def test_what_libopus_lacks_is_refused(bitrate: int, complexity: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        OggOpusEncoder(bitrate, complexity).start(24000)


def test_bitrate_changes_the_size() -> None:
    sizes = [len(encode(OggOpusEncoder(bitrate), 24000, [speechlike(48000)])) for bitrate in (8000, 32000, 256000)]
    assert sizes[0] * 2 < sizes[1] < sizes[2] / 3


def test_a_streamed_wav_is_read_to_its_end(tmp_path: Path) -> None:
    samples = speechlike(5000)
    (tmp_path / "a.wav").write_bytes(encode(WavEncoder(), 22050, [samples]))
    with av.open(tmp_path / "a.wav") as container:
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert container.streams.audio[0].rate == 22050
    assert np.array_equal(decoded, samples)


def test_pcm_is_little_endian() -> None:
    assert encode(PcmEncoder(), 24000, [np.array([1, -2], np.int16)]) == b"\x01\x00\xfe\xff"
