"""Detection of recordings by their complete content, not by their name."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from streaming_server.audio import probe as module
from streaming_server.audio.probe import ALL_FORMATS, BASIC_FORMATS, Recording
from streaming_server.errors import RecordingRefused
from tests.support.recordings import SUFFIXES, cut, made

LONGEST_S = 20.0


def probe(path: Path, longest_s: float, formats: Sequence[str] = ALL_FORMATS) -> Recording:
    with path.open("rb") as file:
        return module.probe(file, longest_s, formats)


def refusal(path: Path, longest_s: float = LONGEST_S) -> str:
    with pytest.raises(RecordingRefused) as refused:
        probe(path, longest_s)
    assert str(path) not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rate_hz", [16000, 44100])
def test_the_four_formats(suffix: str, rate_hz: int, tmp_path: Path) -> None:
    found = probe(made(tmp_path / f"a.{suffix}", rate_hz=rate_hz), LONGEST_S)
    assert (found.format, found.rate_hz) == (suffix, rate_hz)
    assert found.duration_s == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_content_is_judged_and_not_the_name(suffix: str, tmp_path: Path) -> None:
    path = made(tmp_path / f"a.{suffix}")
    for name in ("lying.wav", "lying.mp3", "lying.jpg", "no-suffix"):
        assert probe(path.rename(path.with_name(name)), LONGEST_S).format == suffix
        path = path.with_name(name)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s24le", "pcm_f32le", "pcm_alaw", "adpcm_ms"])
def test_other_samples_in_a_wav(codec: str, tmp_path: Path) -> None:
    assert probe(made(tmp_path / "a.wav", "-c:a", codec, "-ac", "2"), LONGEST_S).format == "wav"


def test_lossless_in_m4a(tmp_path: Path) -> None:
    assert probe(made(tmp_path / "a.m4a", "-c:a", "alac"), LONGEST_S).format == "m4a"


@pytest.mark.parametrize("suffix", ["mp3", "flac", "m4a"])
def test_cover_art_is_no_video(suffix: str, tmp_path: Path) -> None:
    picture = tmp_path / "cover.png"
    made(picture, "-frames:v", "1", source="color=red:s=64x64", rate_hz=1)
    options = ["-i", str(picture), "-map", "0:a", "-map", "1:v", "-c:v", "png", "-disposition:v", "attached_pic"]
    assert probe(made(tmp_path / f"a.{suffix}", *options), LONGEST_S).duration_s == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_cut_file(suffix: str, share: float, tmp_path: Path) -> None:
    message = refusal(cut(made(tmp_path / f"a.{suffix}", seconds=3.0), share))
    assert "cut off" in message or "damaged" in message


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_cut_m4a_whose_index_comes_first(share: float, tmp_path: Path) -> None:
    path = cut(made(tmp_path / "a.m4a", "-movflags", "faststart", seconds=3.0), share)
    refusal(path)


@pytest.mark.parametrize("suffix", ["flac", "mp3", "m4a"])
def test_bytes_that_were_altered(suffix: str, tmp_path: Path) -> None:
    path = made(tmp_path / f"a.{suffix}", seconds=3.0)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(byte ^ 0x55 for byte in content[middle : middle + 200])
    path.write_bytes(content)
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_header_alone(suffix: str, tmp_path: Path) -> None:
    path = made(tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[:44])
    refusal(path)


def test_a_wav_from_a_pipe_has_no_length_and_is_whole(tmp_path: Path) -> None:
    path = made(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[4:8] = content[place : place + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert probe(path, LONGEST_S).duration_s == pytest.approx(1.0)


def test_a_wav_whose_chunks_lie_about_their_length(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    head = b"RIFF" + struct.pack("<I", 36) + b"WAVE" + b"fmt " + struct.pack("<I", 2**32 - 2)
    path.write_bytes(head + b"\0" * 1000)
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a",
        b"\0" * 100_000,
        b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
        b"fLaC" + b"\0" * 100,
        b"\0\0\0\x18ftypM4A ",
        b"RIFF\xff\xff\xff\xffWAVE",
        b"\xff\xfb" * 5000,
        b"PK\x03\x04" + b"\0" * 1000,
        b"<html>" * 1000,
        b"#!/bin/sh\necho\n",
        "文本".encode() * 1000,
    ],
    ids=["empty", "byte", "zeros", "id3", "flac", "m4a", "riff", "mp3", "zip", "html", "script", "text"],
)
def test_what_is_no_recording(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    refusal(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["-c:a", "libopus", "-f", "ogg"], "ogg"),
        (["-c:a", "libvorbis", "-f", "ogg"], "ogg"),
        (["-c:a", "libopus", "-f", "webm"], "webm"),
        (["-c:a", "aac", "-f", "adts"], "aac"),
        (["-f", "aiff"], ""),
    ],
)
def test_formats_that_are_not_among_the_four(options: list[str], name: str, tmp_path: Path) -> None:
    path = made(tmp_path / "a.wav", *options, rate_hz=48000)
    with pytest.raises(RecordingRefused, match="not a recording in wav, mp3, m4a or flac"):
        probe(path, LONGEST_S, BASIC_FORMATS)
    if not name:
        refusal(path)
        return
    found = probe(path, LONGEST_S)
    assert (found.format, found.rate_hz) == (name, 48000)
    assert found.duration_s == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_video(codec: str, tmp_path: Path) -> None:
    picture = ["-f", "lavfi", "-i", "testsrc=d=1:s=64x64:r=5", "-c:v", codec]
    assert "video" in refusal(made(tmp_path / "a.mp4", *picture))
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    assert "video" in refusal((tmp_path / "b.mp4").rename(tmp_path / "b.m4a"))


def test_a_video_without_sound(tmp_path: Path) -> None:
    assert "audio" in refusal(made(tmp_path / "a.mp4", source="testsrc=s=64x64", rate_hz=5))


def test_two_tracks(tmp_path: Path) -> None:
    assert "one audio track" in refusal(made(tmp_path / "a.m4a", "-map", "0:a", "-map", "0:a"))


@pytest.mark.parametrize("kind", ["concat", "hls", "sdp"])
def test_a_file_that_names_others_opens_none_of_them(kind: str, tmp_path: Path) -> None:
    """The client guesses the folder and the name of the secret file."""
    secret = made(tmp_path / "secret.wav")
    contents = {
        "concat": f"ffconcat version 1.0\nfile '{secret}'\nfile 'secret.wav'\n".encode(),
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n".encode(),
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    }
    (tmp_path / "a.m4a").write_bytes(contents[kind])
    refusal(tmp_path / "a.m4a")


@pytest.mark.parametrize("suffix", ["flac", "mp3", "m4a"])
def test_a_long_silence_in_a_small_file_is_stopped_at_the_limit(suffix: str, tmp_path: Path) -> None:
    options = {"flac": ["-b:a", "1k"], "mp3": ["-b:a", "8k"], "m4a": ["-b:a", "1k", "-movflags", "+faststart"]}[suffix]
    path = made(tmp_path / f"a.{suffix}", *options, seconds=200, source="anullsrc", rate_hz=8000)
    content = path.read_bytes()
    assert len(content) < 350_000
    assert "longer than 20 s" in refusal(path)
    # The end, which is damaged, is read only where the limit allows it.
    path.write_bytes(content[: len(content) * 3 // 4] + b"\x55" * (len(content) // 4))
    assert "longer" not in refusal(path, 2000.0)
    assert "longer than 20 s" in refusal(path)


def test_a_recording_just_within_and_just_beyond_the_limit(tmp_path: Path) -> None:
    path = made(tmp_path / "a.wav", seconds=2.0)
    assert probe(path, 2.0).duration_s == 2.0
    assert "longer than 1.9 s" in refusal(path, 1.9)


@pytest.mark.parametrize("rate_hz", [1, 3999, 384_001, 2**31 - 1])
def test_rates_beyond_measure(rate_hz: int, tmp_path: Path) -> None:
    path = made(tmp_path / "a.wav", rate_hz=24000)
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate_hz)
    path.write_bytes(content)
    assert "4000 to 384000" in refusal(path)


@pytest.mark.parametrize("rate_hz", [4000, 384_000])
def test_rates_at_the_bounds(rate_hz: int, tmp_path: Path) -> None:
    assert probe(made(tmp_path / "a.wav", rate_hz=rate_hz), LONGEST_S).rate_hz == rate_hz
