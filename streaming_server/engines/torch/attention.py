"""Attention of the GPT: the inputs of a prompt, and one input per row in a decoding step.

An `Attend` takes queries ``(B, heads, T, d)`` and a layer's cache ``(2, B, heads, slots, d)``; it returns the weighted
values ``(B, heads, T, d)``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor], Tensor]

SPAN = 256
"""`masked` reads multiples of this number of slots, so that there are few fixed shapes."""

MAX_ERROR = {torch.float16: 5e-3, torch.bfloat16: 1e-2}
"""Largest difference of `up_to` from `masked` for values of about 1."""


def causal(queries: Tensor, cache: Tensor) -> Tensor:
    """Attend to the slot of the same index and those before it."""
    keys, values = cache[:, :, :, : queries.shape[2]]
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)


def masked(slot: Tensor, slots: Tensor, dtype: torch.dtype) -> Attend:
    """The attention of one input per row to the slots up to ``slot (B, 1)`` among ``slots (span,)``, counted from 0.

    It reads the whole span, also what a row has not filled.
    """
    bias = torch.where(slots <= slot, 0.0, -torch.inf).to(dtype)[:, None, None]  # (B, 1, 1, span)

    def attend(queries: Tensor, cache: Tensor) -> Tensor:
        keys, values = cache[:, :, :, : len(slots)]
        return F.scaled_dot_product_attention(queries, keys, values, bias)

    return attend


def up_to(slot: Tensor, heads: int, slots: int) -> Attend:
    """The attention of one input per row to the slots up to ``slot (B, 1)``, in a cache of ``slots``.

    The kernel of FlashAttention reads the lengths on the device, and of the cache what each row has filled, so that one
    recorded step serves all lengths. Needs CUDA and half precision.
    """
    from torch.nn.attention.varlen import varlen_attn_out

    rows = slot.shape[0]
    queries_before = torch.arange(rows + 1, dtype=torch.int32, device=slot.device)
    slots_before = queries_before * (heads * slots)
    lengths = (slot[:, 0] + 1).to(torch.int32)

    def attend(queries: Tensor, cache: Tensor) -> Tensor:
        width = queries.shape[-1]
        # The kernel takes the heads of a slot at any distance from each other; here it is that of all slots of a head.
        size, strides = (((rows - 1) * heads + 1) * slots, heads, width), (width, slots * width, 1)
        keys, values = (part.as_strided(size, strides) for part in cache)
        out = queries.new_empty(rows, heads, width)
        varlen_attn_out(
            out, queries[:, :, 0], keys, values, queries_before, slots_before, 1, slots, seqused_k=lengths
        )  # fmt: skip
        return out[:, :, None]

    return attend


def reads_lengths(heads: int, width: int, like: Tensor) -> bool:
    """Whether `up_to` works for heads of a width, on the device and in the precision of ``like``.

    A warning gives the reason where it should and does not.
    """
    if like.device.type != "cuda" or like.dtype not in MAX_ERROR:
        return False
    try:
        error = difference(heads, width, like)
        problem = "" if error <= MAX_ERROR[like.dtype] else f"its result is off by {error:.2g}"  # also where it is NaN
    except Exception as failure:  # an older torch, a GPU without such a kernel
        problem = f"{type(failure).__name__}: {failure}".partition("\n")[0]
    if problem:
        log.warning("FlashAttention not used: %s; decoding steps are recorded for every %d slots", problem, SPAN)
    return not problem


def difference(heads: int, width: int, like: Tensor) -> float:
    """Largest difference of `up_to` from `masked` for two rows; to `up_to` no slot behind the last one is a number."""
    rng = torch.Generator().manual_seed(0)
    slots = torch.arange(2 * SPAN, device=like.device)
    cache = torch.randn(2, 2, heads, len(slots), width, generator=rng).to(like)
    queries = torch.randn(2, 1, 3, heads, width, generator=rng).to(like)[:, :, 0].transpose(1, 2)  # as in `Attention`
    last = (len(slots) - 3, 40)
    slot = torch.tensor(last, device=like.device)[:, None]
    expected = masked(slot, slots, like.dtype)(queries, cache)
    for row, index in enumerate(last):
        cache[:, row, :, index + 1 :] = torch.nan
    return float((up_to(slot, heads, len(slots))(queries, cache) - expected).abs().max())
