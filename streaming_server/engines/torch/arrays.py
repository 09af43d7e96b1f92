"""The kinds of arrays that the runtimes' methods accept: tensors, NumPy arrays, sequences of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = Tensor | npt.NDArray[np.generic] | Sequence[int]


def tensor_of(array: Array) -> Tensor:
    """The same numbers as a tensor; memory is shared where it may be written to."""
    return array if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements="W"))


def take(array: Array, dimensions: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The numbers where and as they are needed; leading axes of size one beyond ``dimensions`` are dropped."""
    tensor = tensor_of(array).to(dtype).to(device)
    while tensor.ndim > dimensions and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor


def all_finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
