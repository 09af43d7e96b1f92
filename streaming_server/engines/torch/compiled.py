"""Compiles what a decoding step computes between two attentions, which does not depend on the attention span."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from streaming_server.engines.torch.gpt import Between, Transformer, between

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of a compiled result from the plain one, as a share of its largest value."""


def compile_steps(transformer: Transformer) -> None:
    """Let the decoding steps of a transformer use compiled code from now on.

    They use the plain code where it cannot be compiled, or computes something else; a warning then gives the reason.
    ``TORCH_COMPILE_DISABLE=1`` in the environment keeps the plain code too.
    """
    if transformer.between is not between or len(transformer.h) < 2:
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("torchinductor")))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of processes takes longer for one function
    try:
        # One row is compiled for itself, and two rows for any larger number: a request that is the first with several
        # beams does not wait for the compiler, whose errors would fail it.
        compiled: Between = torch.compile(between, fullgraph=True)
        problem = difference(compiled, transformer) or difference(compiled, transformer, 2)
    except Exception as error:  # the compiler, its packages and its C or Triton tool chain fail in many ways
        problem = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    if problem:
        log.warning("torch.compile not used: %s; decoding steps run uncompiled", problem)
    else:
        transformer.between = compiled


def difference(compiled: Between, transformer: Transformer, rows: int = 1) -> str:
    """How a compiled function differs from the plain one for an input of the first blocks; empty where it agrees."""
    block, following, *_ = transformer.blocks
    weight = transformer.ln_f.weight
    rng = torch.Generator().manual_seed(0)
    x, mixed = (torch.randn(rows, 1, weight.shape[0], generator=rng).to(weight) for _ in range(2))
    inputs: tuple[Tensor, ...] = (x, mixed, *block.weights_after, *following.weights_before)
    for found, expected in zip(compiled(*inputs), between(*inputs), strict=True):
        limit = TOLERANCE[weight.dtype] * float(expected.abs().max())
        if not (error := float((found - expected).abs().max())) <= limit:  # also where it is NaN
            return f"its result is off by {error:.2g}"
    return ""


def cache_folder(name: str) -> Path:
    """Where compiled code is kept for the next start: the folder that systemd gives the service, or the user's."""
    if given := os.environ.get("CACHE_DIRECTORY"):
        return Path(given) / name
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "streaming-server" / name
