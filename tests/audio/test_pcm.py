from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_server.audio.pcm import Resampler, to_float32, to_int16
from tests.support.fakes import tone


def test_every_16_bit_value_survives_the_way_through_float() -> None:
    values = np.arange(-32768, 32768).astype(np.int16)
    assert np.array_equal(to_int16(to_float32(values)), values)


def test_what_is_too_loud_is_clipped() -> None:
    assert to_int16(np.array([1.5, -1.5, 1.0], np.float32)).tolist() == [32767, -32768, 32767]


@given(st.integers(0, 3000), st.lists(st.integers(0, 3000), max_size=8))
def test_resampling_does_not_depend_on_the_split(length: int, cuts: list[int]) -> None:
    samples = to_int16(tone(0.2, 440, 22050))[:length]

    def resampled(pieces: list[np.ndarray[tuple[int], np.dtype[np.int16]]]) -> list[int]:
        resampler = Resampler(22050, 24000)
        out: list[int] = np.concatenate([*map(resampler.push, pieces), resampler.finish()]).tolist()
        return out

    whole = resampled([samples])
    assert len(whole) == -(-samples.size * 24000 // 22050)
    assert resampled(np.split(samples, sorted(cut for cut in cuts if cut < samples.size))) == whole


@pytest.mark.parametrize("frequency_hz", [100, 1000, 5000])
def test_resampling_keeps_a_tone(frequency_hz: int) -> None:
    resampler = Resampler(22050, 24000)
    out = np.concatenate([resampler.push(to_int16(tone(1, frequency_hz, 22050))), resampler.finish()])
    spectrum = np.abs(np.fft.rfft(out * np.hanning(out.size)))
    assert spectrum.argmax() == pytest.approx(frequency_hz, abs=1)
    beside = np.delete(spectrum, range(frequency_hz - 20, frequency_hz + 20))
    assert beside.max() < 1e-3 * spectrum.max()
