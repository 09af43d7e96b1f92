"""The activation of BigVGAN: a snake between two low-pass filters; on CUDA, one kernel."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from streaming_server.engines.torch.compiled import cache_folder

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Samples, alpha, beta and taps to samples, as `snake_kernel.alias_free_snake`."""

FILTER_TAPS = 12
FILTER_CUTOFF = 0.25
FILTER_HALF_WIDTH = 0.3
REACH = 3
"""Samples to either side that affect an activation; the contribution of samples beyond is below 1e-6."""

MAX_ERROR = {torch.float32: 5e-3, torch.float16: 3e-2, torch.bfloat16: 0.25}
"""Largest difference of the kernel from the operators for values of about 1; these may use TF32, and round between."""


def low_pass() -> Tensor:
    """A Kaiser-windowed sinc filter with unit gain at 0 Hz, ``(FILTER_TAPS,)``."""
    half = FILTER_TAPS // 2
    attenuation = 2.285 * (half - 1) * math.pi * 4 * FILTER_HALF_WIDTH + 7.95  # dB, by Kaiser's estimate
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    window = torch.kaiser_window(FILTER_TAPS, periodic=False, beta=beta, device="cpu")
    taps = window * torch.sinc(2 * FILTER_CUTOFF * (torch.arange(-half, half, device="cpu") + 0.5))
    return taps / taps.sum()


class Snake(nn.Module):
    """``x + sin²(x · alpha) · beta`` for each channel; ``beta`` is the reciprocal of the checkpoint's value."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))
        self.beta = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, torch.sin(x * self.alpha[:, None]).square(), self.beta[:, None])


class AliasFreeSnake(nn.Module):
    """The snake activation at twice the sampling rate, between two low-pass filters: ``(B, C, T)`` → the same."""

    filter: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = Snake(channels)
        self.register_buffer("filter", low_pass(), persistent=False)
        self.kernel: Kernel | None = None
        """Computes all of it, if there is one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is not None:
            return self.kernel(x, self.act.alpha, self.act.beta, self.filter)
        channels = x.shape[1]
        taps = self.filter.expand(channels, 1, FILTER_TAPS)
        x = F.pad(x, (5, 5), mode="replicate")
        x = F.conv_transpose1d(x, 2 * taps, stride=2, groups=channels)[..., 15:-15]  # (B, C, 2 T)
        x = F.pad(self.act(x), (5, 6), mode="replicate")
        return F.conv1d(x, taps, stride=2, groups=channels)


def fuse_activations(model: nn.Module) -> None:
    """Let each activation of a model be one kernel from now on, in place of nine, where there is one."""
    activations = [module for module in model.modules() if isinstance(module, AliasFreeSnake)]
    kernel = kernel_for(activations[0].filter)
    for activation in activations:
        activation.kernel = kernel


def kernel_for(like: Tensor) -> Kernel | None:
    """The kernel for the device and the precision of ``like``; None on other devices than CUDA.

    A warning gives the reason where there should be one and is not.
    """
    if like.device.type != "cuda":
        return None
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_folder("triton")))
    try:
        from streaming_server.engines.torch.snake_kernel import alias_free_snake

        error = difference(alias_free_snake, like)
        problem = "" if error <= MAX_ERROR[like.dtype] else f"its result is off by {error:.2g}"  # also where it is NaN
    except Exception as failure:  # no Triton, no C compiler, a GPU that it does not know
        problem = f"{type(failure).__name__}: {failure}".partition("\n")[0]
    if problem:
        log.warning("Triton not used: %s; the vocoder's activations run as separate operators", problem)
        return None
    return alias_free_snake


def difference(kernel: Kernel, like: Tensor) -> float:
    """Largest difference of a kernel from the operators, for rows with beginning, middle and end."""
    rng = torch.Generator().manual_seed(0)
    activation = AliasFreeSnake(3).requires_grad_(requires_grad=False)
    activation.act.alpha.copy_(torch.tensor([0.5, 1.0, 2.0]))
    activation.act.beta.copy_(torch.tensor([1.0, 0.5, 0.25]))
    activation.to(like)
    x = torch.randn(2, 3, 1500, generator=rng).to(like)
    fused = kernel(x, activation.act.alpha, activation.act.beta, activation.filter)
    return float((fused - activation(x)).abs().max())
