"""The runtime agrees with the reference values, and the comparisons can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from streaming_server.engines.indextts import features
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.torch import activation, decoding
from streaming_server.engines.torch.decoding import Decoder
from streaming_server.engines.torch.sampling import Sampling
from tests.engines.indextts import parity


@pytest.mark.parametrize("check", parity.CHECKS, ids=lambda check: check.__name__)
def test_the_published_numbers_come_out(runtime: Runtime, check: Callable[[Runtime], None]) -> None:
    check(runtime)


def test_leading_axes_of_one_change_nothing(runtime: Runtime) -> None:
    mel = torch.from_numpy(parity.numbers()["mel"])
    parity.close(runtime.condition(mel[None]), "cond")
    parity.close(runtime.speaker(mel[None].numpy()), "speaker")
    parity.close(runtime.log_mel(parity.numbers()["wav"][None]), "mel")
    frozen = parity.numbers()["mel"].copy()
    frozen.flags.writeable = False
    parity.close(runtime.condition(frozen), "cond")
    latents, speaker = parity.numbers()["latents_greedy_aligned"], parity.numbers()["speaker"]
    parity.close(runtime.vocode(latents[None], speaker[None])[:4096], "wav_out_head")


def teacher_forced_error(runtime: Runtime) -> float:
    """Largest error of the latents when the published codes are fed, whatever the logits say."""
    numbers = parity.numbers()
    decoder = Decoder(runtime.gpt, 1, 200, parity.CODES)
    prompt = runtime.gpt.prompt(torch.from_numpy(numbers["cond"]), torch.from_numpy(numbers["text"]))
    decoder.start([prompt], Sampling(do_sample=False))
    for code in numbers["codes_greedy_aligned"][:-1]:
        decoder.feed(int(code))
    return float(np.abs(decoder.latents[0].float().numpy() - numbers["latents_greedy_aligned"]).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 0.1)], ids=str)
def test_half_precision_stays_near(dtype: torch.dtype, tolerance: float) -> None:
    runtime = parity.build_runtime(dtype)
    assert 1e-5 < teacher_forced_error(runtime) < tolerance
    numbers = parity.numbers()
    parity.close(runtime.condition(numbers["mel"]), "cond")  # the encoders of the voice keep their precision
    samples = runtime.vocode(numbers["latents_greedy_aligned"], numbers["speaker"])
    parity.close(samples[:4096], "wav_out_head", 5 * tolerance)


def test_resampling_takes_any_rate() -> None:
    """Coprime rates have a polyphase table of gigabytes; a tone must come out as the same tone."""
    for rate in (24_001, 11_025, 8_000, 96_000):
        tone = torch.sin(2 * torch.pi * 440 * torch.arange(rate // 2) / rate)
        wanted = torch.sin(2 * torch.pi * 440 * torch.arange(12_000) / 24_000)
        resampled = features.resample(tone, rate)
        assert abs(len(resampled) - 12_000) <= 1
        assert (resampled[100:-100] - wanted[100 : len(resampled) - 100]).abs().max() < 5e-3


# Each mutation below is a mistake that is easy to make; the check beside it must notice.


def fails(check: Callable[[Runtime], None], runtime: Runtime) -> None:
    with pytest.raises(AssertionError):
        check(runtime)


def test_wrong_mel_positions_are_noticed(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoding.FIRST_CODE_POSITION, "aligned", 2)
    fails(parity.check_greedy, runtime)
    fails(parity.check_sampled, runtime)


@pytest.mark.parametrize(
    ("owner", "norm", "check"),
    [
        ("gpt", "final_norm", parity.check_greedy),
        ("gpt.gpt", "ln_f", parity.check_greedy),
        ("gpt.conditioning_encoder", "after_norm", parity.check_conditioning),
        ("gpt.conditioning_encoder.encoders.1", "norm_final", parity.check_conditioning),
        ("gpt.perceiver_encoder", "norm", parity.check_conditioning),
        ("vocoder.speaker_encoder", "asp_bn", parity.check_speaker),
    ],
)
def test_a_missing_norm_is_noticed(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, owner: str, norm: str, check: Callable[[Runtime], None]
) -> None:
    root, _, path = owner.partition(".")
    module: nn.Module = getattr(runtime, root).get_submodule(path)
    monkeypatch.setitem(module._modules, norm, nn.Identity())
    fails(check, runtime)


def test_the_wrong_gelu_is_noticed(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x, approximate="none": gelu(x))
    fails(parity.check_greedy, runtime)
    monkeypatch.setattr(F, "gelu", lambda x, approximate="none": gelu(x, approximate="tanh"))
    fails(parity.check_conditioning, runtime)


@pytest.mark.parametrize(("mode", "check"), [("replicate", parity.check_audio), ("reflect", parity.check_speaker)])
def test_the_wrong_padding_is_noticed(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, mode: str, check: Callable[[Runtime], None]
) -> None:
    pad = F.pad

    def zeros_instead(x: Tensor, size: Any, mode_asked: str = "constant", **kwargs: Any) -> Tensor:
        asked = kwargs.pop("mode", mode_asked)
        return pad(x, size, mode="constant" if asked == mode else asked, **kwargs)

    monkeypatch.setattr(F, "pad", zeros_instead)
    fails(check, runtime)


def test_a_filter_that_is_one_sample_late_is_noticed(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    pad = F.pad
    monkeypatch.setattr(
        F, "pad", lambda x, size, *args, **kwargs: pad(x, (6, 5) if size == (5, 6) else size, *args, **kwargs)
    )
    fails(parity.check_audio, runtime)


def test_a_wrong_filter_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "FILTER_HALF_WIDTH", 0.31)
    fails(parity.check_audio, parity.build_runtime())


def test_a_wrong_mel_scale_is_noticed(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FLOOR", 1e-5)
    silence = np.zeros(4096, np.float32)
    assert runtime.log_mel(silence).max() == pytest.approx(np.log(1e-5))
    monkeypatch.setattr(features, "N_FFT", 1022)
    fails(parity.check_mel, runtime)
