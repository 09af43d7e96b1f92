from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from streaming_server.audio.decode import decode_mono, decode_native
from streaming_server.audio.encoders import wav_header
from streaming_server.audio.pcm import to_int16
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.audio.probe import probe
from streaming_server.errors import RecordingRefused, VoiceFileMissing, VoiceUnreadable
from tests.support.fakes import tone
from tests.support.recordings import float_wav


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "m4a", "ogg", "opus"])
def test_every_format_of_the_reference_folder_is_decoded(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / "source.wav"
    samples = to_int16(tone(1.5, 200, 24000))
    source.write_bytes(wav_header(24000, samples.size) + samples.tobytes())
    path = tmp_path / f"a.{suffix}"
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", source, "-ac", "2", path], check=True)
    decoded = decode_mono(path, 16000)
    assert decoded.size / 16000 == pytest.approx(1.5, abs=0.06)
    assert median_pitch_hz(decoded, 16000) == pytest.approx(200, rel=0.02)
    assert np.abs(decoded).max() == pytest.approx(0.5, rel=0.15)
    assert decode_mono(path, 16000, limit_s=0.5).size < 16000


def test_what_is_no_audio_is_told_apart_from_what_is_not_there(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.wav"
    garbage.write_bytes(b"not audio at all" * 100)
    with pytest.raises(VoiceUnreadable, match=r"garbage\.wav"):
        decode_native(garbage)
    with pytest.raises(VoiceFileMissing, match=r"gone\.wav"):
        decode_native(tmp_path / "gone.wav")
    empty = tmp_path / "empty.wav"
    empty.write_bytes(wav_header(24000, 0))
    with pytest.raises(VoiceUnreadable):
        decode_native(empty)


@pytest.mark.parametrize("frequency_hz", [80, 120, 200, 300])
def test_pitch_of_a_buzz(frequency_hz: int) -> None:
    time_s = np.arange(16000) / 16000
    buzz = sum(np.sin(2 * np.pi * frequency_hz * k * time_s) / k for k in range(1, 8))
    noisy = (0.2 * buzz + np.random.default_rng(0).normal(0, 0.01, 16000)).astype(np.float32)
    assert median_pitch_hz(noisy, 16000) == pytest.approx(frequency_hz, rel=0.02)


def test_silence_and_noise_have_no_pitch() -> None:
    assert median_pitch_hz(np.zeros(16000, np.float32), 16000) is None
    assert median_pitch_hz(np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32), 16000) is None
    assert median_pitch_hz(np.zeros(10, np.float32), 16000) is None


@pytest.mark.parametrize(
    ("sample", "problem"), [(np.nan, "not finite"), (-np.inf, "not finite"), (1e30, r"e[+]\d+ times full scale")]
)
def test_samples_that_no_recording_has_are_refused(tmp_path: Path, sample: float, problem: str) -> None:
    path = float_wav(tmp_path / "a.wav", sample)
    for decode in (decode_native, lambda path: decode_mono(path, 16000)):
        with pytest.raises(VoiceUnreadable, match=rf"a\.wav has samples .*{problem}"):
            decode(path)
    with pytest.raises(RecordingRefused, match=problem):
        probe(BytesIO(path.read_bytes()), 20)
    probe(BytesIO(float_wav(path, 3.0).read_bytes()), 20)
    assert decode_native(path)[0].max() == 3.0
