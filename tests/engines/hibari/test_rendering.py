"""The package's internals that the engine calls directly: an upgrade that changes them fails here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hibari import Hibari, dsp

from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.engines.hibari.joins import active_rms, trimmed
from streaming_server.engines.hibari.network import BINS, SAMPLE_RATE_HZ, Frames, Network
from streaming_server.engines.hibari.rendering import FIRST_FRAMES, PIECE_FRAMES, Timbre, render
from streaming_server.engines.hibari.voices import BY_NAME
from streaming_server.engines.onnx.english import EnglishPhonemes

SENTENCE = "The birch canoe slid on the smooth planks, and the sun was bright."
EDGE = dsp.N_FFT
"""Samples at both ends that the package scales by the window's tapered sum."""


@pytest.fixture(scope="module")
def phonemes() -> str:
    return EnglishPhonemes()(SENTENCE)


@pytest.fixture(scope="module")
def frames(network: Network, phonemes: str) -> Frames:
    return network.run(phonemes)


def test_the_package_has_the_shapes_that_the_engine_relies_on(phonemes: str, frames: Frames) -> None:
    package = Hibari()
    assert package.phonemize(SENTENCE) == [phonemes]
    inputs = {"ids": np.array([package.ids(phonemes)], np.int64), "speed": np.ones(1, np.float32)}
    outputs = package.sess.run(None, inputs)
    count = frames.f0_hz.size
    assert [output.name for output in package.sess.get_outputs()] == ["lh", "theta", "ln", "lr", "phi", "f0"]
    assert [output.shape for output in outputs] == [(1, 601, count)] * 5 + [(1, count)]
    for mine, theirs in zip((*frames.spectra, frames.f0_hz), outputs, strict=True):
        assert np.array_equal(mine, theirs[0])
    assert (dsp.SR, dsp.N_FFT, dsp.HOP, BINS) == (24000, 1200, 300, 601)
    wave = dsp.synth(*(spectrum.copy() for spectrum in frames.spectra), frames.f0_hz, np.random.default_rng(0))
    assert (wave.shape, wave.dtype) == ((count * 300,), np.float32)
    assert dsp.pulses(frames.f0_hz, 40.0).shape == (count * 300,)


def test_pieces_join_to_what_the_package_renders_as_a_whole(frames: Frames) -> None:
    # Noise is drawn in another order, so that it is compared without.
    frames = replace(frames, noise=frames.noise - 40)
    pieces = list(render(frames, Timbre(), np.random.default_rng(0)))
    expected = dsp.synth(*(spectrum.copy() for spectrum in frames.spectra), frames.f0_hz, np.random.default_rng(0))
    assert pieces[0].size < (FIRST_FRAMES + 1) * dsp.HOP < expected.size / 4
    assert max(piece.size for piece in pieces) <= (PIECE_FRAMES + 2) * dsp.HOP
    joined = np.concatenate(pieces)
    assert joined.shape == expected.shape
    assert np.allclose(joined[EDGE:-EDGE], expected[EDGE:-EDGE], atol=1e-5)


def test_the_network_is_silent_around_its_speech_and_that_is_cut_off(frames: Frames) -> None:
    kept = trimmed(frames)
    assert frames.f0_hz.size - kept.f0_hz.size > 0.3 * SAMPLE_RATE_HZ / dsp.HOP
    speech = np.concatenate(list(render(frames, Timbre(), np.random.default_rng(0))))
    rest = np.concatenate(list(render(kept, Timbre(), np.random.default_rng(0))))
    assert np.square(rest).sum() == pytest.approx(np.square(speech).sum(), rel=0.05)


@pytest.mark.parametrize("pitch", [0.43, 0.66, 1.18])
def test_another_pitch_is_exact_and_as_loud(frames: Frames, pitch: float) -> None:
    own = np.concatenate(list(render(frames, Timbre(), np.random.default_rng(0))))
    other = np.concatenate(list(render(frames, Timbre(pitch), np.random.default_rng(0))))
    own_hz, other_hz = median_pitch_hz(own, SAMPLE_RATE_HZ), median_pitch_hz(other, SAMPLE_RATE_HZ)
    assert own_hz
    assert other_hz == pytest.approx(own_hz * pitch, rel=0.06)
    # A voice that reads between the network's harmonics is 6 to 9 dB louder.
    assert abs(20 * np.log10(active_rms(other) / active_rms(own))) < 5


def test_the_voices_differ_and_are_equally_loud(frames: Frames) -> None:
    levels, voices = [], []
    for preset in BY_NAME.values():
        samples = np.concatenate(list(render(trimmed(frames), preset.timbre, np.random.default_rng(0))))
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() < 0.98
        levels.append(20 * np.log10(active_rms(samples)))
        voices.append(median_pitch_hz(samples, SAMPLE_RATE_HZ) or 0)
    assert max(levels) - min(levels) < 3
    assert all((hz > 160) == (preset.gender == "female") for hz, preset in zip(voices, BY_NAME.values(), strict=True))
    assert max(voices) / min(voices) > 2.4


def test_loud_peaks_are_rounded_off(frames: Frames) -> None:
    loud = np.concatenate(list(render(frames, Timbre(gain_db=20), np.random.default_rng(0))))
    assert 0.9 < np.abs(loud).max() < 1.0
