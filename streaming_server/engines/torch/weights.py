"""Loads weights from a file into a module: reads and unwraps them, folds weight norm, and assigns them strictly.

`Misfit` reports a file that does not fit; its message names the first wrong key or shape.
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
"""Suffixes of keys that hold constants or training state."""


class Misfit(Exception):
    """A file is broken, or does not fit the configuration beside it."""

    @classmethod
    def of(cls, file: str, what: str, config: str = "config.yaml") -> Misfit:
        return cls(f"{file} does not fit {config}: {what}")


@contextmanager
def settings_of(config: str) -> Iterator[None]:
    """Translate the exception of a missing or invalid setting into a `Misfit` that names the configuration's file."""
    try:
        yield
    except (Misfit, EngineUnavailable, ImportError):  # the last is of a package that is not installed
        raise
    except Exception as error:  # of Python, torch or transformers, wherever the value is first used
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise Misfit(f"{config}: missing or invalid setting {cause}") from error


@contextmanager
def translate_errors(how_to_get_it: str) -> Iterator[None]:
    """Translate a `Misfit` into an `EngineUnavailable` whose message also says how to get the right files."""
    try:
        yield
    except Misfit as error:
        raise EngineUnavailable(f"{error}; {how_to_get_it}") from error


class Shapes:
    """Sizes that the configuration does not hold, from the weights' shapes; the published size if a key is missing."""

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
    """Convert ``alpha`` and ``beta`` to the factor in the sine and the factor of its square, in float32."""
    folded = dict(state)
    for key, value in state.items():
        if key.endswith((".act.alpha", ".act.beta")):
            linear = value.float().exp() if log_scale else value.float()
            folded[key] = linear if key.endswith("alpha") else 1 / (linear + 1e-9)
    return folded


def load(
    module: nn.Module, state: State, file: str, unneeded: Callable[[str], bool], tolerant: bool = False,
    config: str = "config.yaml",
) -> None:  # fmt: skip
    """Assign the arrays to the module's parameters, strictly.

    Args:
        module: on the meta device, or to be overwritten.
        state: arrays by key.
        file: name of the file, for the error message.
        unneeded: returns True for a key that is known to be unused.
        tolerant: ignore unknown keys. A key that differs from a needed one only in its numbers is still an error: the
            model has more layers than the configuration says.
        config: name of the configuration's file, for the error message.

    Raises:
        Misfit: a key is missing, unknown, or has the wrong shape; the message names the first one.
    """
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith(COMPUTED)}
    given = {k: v for k, v in state.items() if not k.endswith(COMPUTED) and not unneeded(k)}
    for key, parameter in wanted.items():
        if key not in given:
            raise Misfit.of(file, f"the key {key} is missing", config)
        if tuple(given[key].shape) != tuple(parameter.shape):
            raise Misfit.of(
                file, f"{key} has the shape {list(given[key].shape)} instead of {list(parameter.shape)}", config
            )
    families = {numberless(key) for key in wanted}
    for key in [key for key in given if key not in wanted]:
        if not tolerant or numberless(key) in families:
            raise Misfit.of(file, f"the key {key} is unknown", config)
        del given[key]
    tensors = {key: tensor_of(value).float() for key, value in given.items()}
    module.load_state_dict(tensors, strict=False, assign=True)


def vocoder_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The vocoder's dtype for a GPT in ``dtype``.

    The vocoder's weights and activations fit into fp16, whose longer mantissa gives a signal-to-noise ratio of 56 dB
    where bf16 gives 36 dB. The CPU has no fast half-precision convolutions.
    """
    return torch.float16 if device.type == "cuda" and dtype == torch.bfloat16 else dtype


def numberless(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def shapes_of(state: State) -> State:
    return {key: torch.empty(tuple(value.shape), device="meta") for key, value in state.items()}


def read_content(path: Path) -> Any:
    """Load a file written by ``torch.save``, tensors and containers only; memory-mapped where the format allows.

    Raises:
        Misfit: the file is truncated, or contains code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise Misfit(f"{path} is truncated or not a checkpoint") from error


def read_state(path: Path, nested: str) -> dict[str, Tensor]:
    """Load the state dict of a file, at the top level or under the key ``nested``.

    Raises:
        Misfit: the file is truncated, or does not contain a state dict.
    """
    content = read_content(path)
    state = content.get(nested, content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Misfit(f"{path} does not contain a state dict")
    return state
