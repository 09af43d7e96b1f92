"""Stands in for the kernel of FlashAttention, which needs CUDA."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kernel(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, seqused_k: Tensor,
) -> None:  # fmt: skip
    """`varlen_attn_out` for sequences of one query, as the documentation of torch describes it."""
    sequences, _, width = query.shape
    for lengths in (cu_seq_q, cu_seq_k, seqused_k):
        assert lengths.dtype == torch.int32
    assert (max_q, out.shape, len(cu_seq_k), len(seqused_k)) == (1, query.shape, sequences + 1, sequences)
    assert out.is_contiguous()
    offsets = torch.arange(max_k)
    index = cu_seq_k[:-1, None] + offsets  # (sequences, max_k)
    behind = offsets >= seqused_k[:, None]
    index = index.masked_fill(behind, 0)
    keys, values = (part[index].masked_fill(behind[..., None, None], 0) for part in (key, value))  # they are not read
    scores = torch.einsum("nhd,nkhd->nhk", query, keys) / math.sqrt(width)
    weights = scores.masked_fill(behind[:, None], -torch.inf).softmax(-1)
    out.copy_(torch.einsum("nhk,nkhd->nhd", weights, values))
