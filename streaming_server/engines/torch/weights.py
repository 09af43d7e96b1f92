"""Weights on their way from a file into a module: read, unwrapped, folded, and put in place strictly.

What does not fit is a `Misfit`, a sentence that names the first key or shape that is off. This module does not know
which model the weights are of, nor its configuration.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streaming_server.engines.torch.arrays import tensor_of
from streaming_server.errors import EngineUnavailable

State = Mapping[str, Tensor | npt.NDArray[np.generic]]

COMPUTED = (".filter", ".pe", ".num_batches_tracked", ".attn.bias", ".attn.masked_bias")
"""Endings of keys that hold constants or training's book-keeping."""


class Misfit(Exception):
    """A file is broken, or does not fit the configuration beside it."""

    @classmethod
    def of(cls, file: str, what: str) -> Misfit:
        return cls(f"{file} does not fit config.yaml: {what}")


@contextmanager
def refused(how_to_get_it: str) -> Iterator[None]:
    """A misfit inside becomes an `EngineUnavailable` that also says where the right files are to be had."""
    try:
        yield
    except Misfit as error:
        raise EngineUnavailable(f"{error}; {how_to_get_it}") from error


class Shapes:
    """Sizes that no configuration holds, read off the weights; where those lack the key, the published size."""

    def __init__(self, state: State) -> None:
        self._state = state

    def size(self, key: str, axis: int, published: int) -> int:
        return int(self._state[key].shape[axis]) if key in self._state else published

    def count(self, beginning: str, ending: str, published: int) -> int:
        return sum(key.startswith(beginning) and key.endswith(ending) for key in self._state) or published


def fold_weight_norm(state: State, file: str) -> dict[str, Tensor]:
    """``weight_g`` and ``weight_v`` → ``weight = v · g / ‖v‖``, the norm over all axes but the first.

    Raises:
        Misfit: one of the two is missing, or they do not belong together.
    """
    folded: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(".weight_v"):
            stem = key.removesuffix("_v")
            if stem + "_g" not in state:
                raise Misfit.of(file, f"the key {stem}_g is missing")
            v, g = tensor_of(value), tensor_of(state[stem + "_g"])
            axes = list(range(1, v.ndim))
            if g.shape != (v.shape[0], *[1 for _ in axes]):
                raise Misfit.of(file, f"{stem}_g has the shape {list(g.shape)}, {stem}_v {list(v.shape)}")
            folded[stem] = v * (g / v.norm(dim=axes, keepdim=True))
        elif not key.endswith(".weight_g") or key.removesuffix("_g") + "_v" not in state:
            folded[key] = tensor_of(value)
    return folded


def fold_snakes(state: Mapping[str, Tensor], log_scale: bool) -> dict[str, Tensor]:
    """``alpha`` and ``beta`` → the factor in the sine and the factor of its square; in float32, once."""
    folded = dict(state)
    for key, value in state.items():
        if key.endswith((".act.alpha", ".act.beta")):
            linear = value.float().exp() if log_scale else value.float()
            folded[key] = linear if key.endswith("alpha") else 1 / (linear + 1e-9)
    return folded


def load(module: nn.Module, state: State, file: str, unneeded: Callable[[str], bool], tolerant: bool = False) -> None:
    """Put the arrays in place, strictly.

    Args:
        module: without memory, or to be overwritten.
        state: arrays by key.
        file: what the state was read from, for the sentence.
        unneeded: tells a key that is known to be of no use.
        tolerant: pass over keys that are like no needed one. One that differs from a needed key in numbers alone is
            refused all the same: the model has more of something than the configuration says.

    Raises:
        Misfit: naming the first key that is missing, has another shape, or is unknown.
    """
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith(COMPUTED)}
    given = {k: v for k, v in state.items() if not k.endswith(COMPUTED) and not unneeded(k)}
    for key, parameter in wanted.items():
        if key not in given:
            raise Misfit.of(file, f"the key {key} is missing")
        if tuple(given[key].shape) != tuple(parameter.shape):
            raise Misfit.of(
                file, f"{key} has the shape {list(given[key].shape)} instead of {list(parameter.shape)}"
            )  # fmt: skip
    families = {numberless(key) for key in wanted}
    for key in [key for key in given if key not in wanted]:
        if not tolerant or numberless(key) in families:
            raise Misfit.of(file, f"the key {key} is unknown")
        del given[key]
    tensors = {key: tensor_of(value).float() for key, value in given.items()}
    module.load_state_dict(tensors, strict=False, assign=True)


def vocoder_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What the vocoder computes in beside a GPT in ``dtype``.

    Its weights and activations fit into half precision, whose longer mantissa leaves 56 dB of signal to noise where
    bf16 leaves 36 dB. On the CPU half precision has no fast convolutions.
    """
    return torch.float16 if device.type == "cuda" and dtype == torch.bfloat16 else dtype


def numberless(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def shapes_of(state: State) -> State:
    return {key: torch.empty(tuple(value.shape), device="meta") for key, value in state.items()}


def read_content(path: Path) -> Any:
    """What torch has saved to a file, tensors and containers only; mapped into memory where the format allows.

    Raises:
        Misfit: the file is truncated, or would run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise Misfit(f"{path} is truncated or no checkpoint") from error


def read_state(path: Path, nested: str) -> dict[str, Tensor]:
    """The state dict of a file, bare or under the key ``nested``.

    Raises:
        Misfit: the file is truncated, or holds something else.
    """
    content = read_content(path)
    state = content.get(nested, content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Misfit(f"{path} holds no state dict")
    return state
