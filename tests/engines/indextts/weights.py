"""Weights that come from a formula over their key and shape, so that no weight file is needed.

The fixtures were made with them. This module does not know the model.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

COMPUTED = (".pe", ".filter")
"""Suffixes of constant buffers in a checkpoint, which are not needed."""


def weight(key: str, shape: Sequence[int]) -> Tensor:
    r = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.long)
    if key.endswith("running_var"):
        r = 0.5 + np.abs(r)
    elif key.endswith("running_mean"):
        r = 0.2 * r
    elif key.endswith(("alpha", "beta")):
        r = 0.3 * r
    elif key.endswith("weight_g"):
        r = 0.35 + 0.15 * np.abs(r)
    elif key.endswith("bias"):
        r = 0.1 * r
    elif "embedding" in key or key.endswith("latents"):
        r = 0.25 * r
    elif key.endswith("gamma") or (len(shape) == 1 and key.endswith("weight")):
        r = 1 + 0.1 * r
    elif any(part in key for part in (".c_attn.", ".c_proj.", ".c_fc.")):
        r = r / np.sqrt(shape[0])
    elif len(shape) == 1:
        r = 0.1 * r
    else:
        r = r / np.sqrt(np.prod(shape[1:]))
    return torch.tensor(r, dtype=torch.float32)


def state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {key: weight(key, shape) for key, shape in shapes.items() if not key.endswith(COMPUTED)}
