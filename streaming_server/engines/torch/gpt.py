"""The GPT-2 that predicts audio codes, and its key-value cache of fixed shape.

Attribute names are those of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from streaming_server.engines.torch.attention import Attend, causal, masked, up_to
from streaming_server.engines.torch.conditioning import Conformer, Perceiver


@dataclass(frozen=True, slots=True)
class GptShape:
    """Sizes and special ids from ``config.yaml``."""

    width: int
    layers: int
    heads: int
    max_mel: int
    max_text: int
    text_tokens: int
    mel_codes: int
    start_text: int
    stop_text: int
    start_mel: int
    stop_mel: int

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Cache:
    """Keys and values of all layers, ``(layers, 2, B, heads, slots, head width)``: preallocated, written in place."""

    def __init__(self, shape: GptShape, rows: int, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        size = (shape.layers, 2, rows, shape.heads, slots, shape.head_width)
        self.layers = torch.zeros(size, device=device, dtype=dtype)

    @property
    def slots(self) -> int:
        return self.layers.shape[4]

    def clear(self, row: int, first: int, end: int) -> None:
        """Zero the slots of a row from ``first`` to ``end``."""
        self.layers[:, :, row, :, first:end].zero_()

    def reorder(self, rows: Tensor, used: int) -> None:
        """Copy the first ``used`` slots of row ``rows[i]`` to row ``i``."""
        self.layers[:, :, :, :, :used] = self.layers[:, :, rows, :, :used]


class Projection(nn.Module):
    """A linear layer whose weight has the shape ``(in, out)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.mT, self.bias)


class Attention(nn.Module):
    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.c_attn = Projection(shape.width, 3 * shape.width)
        self.c_proj = Projection(shape.width, shape.width)

    def forward(self, x: Tensor, cache: Tensor, slot: Tensor | None, attend: Attend) -> Tensor:
        """Write ``x (B, T, width)`` to the cache and attend to it.

        One input per row is written to ``slot (B, 1)``; without it, the inputs are written to the first slots.
        """
        out: Tensor = self.c_proj(self.mix(self.c_attn(x), cache, slot, attend))
        return out

    def mix(self, projected: Tensor, cache: Tensor, slot: Tensor | None, attend: Attend) -> Tensor:
        """Queries, keys and values ``(B, T, 3 · width)`` → weighted values ``(B, T, width)``; else as ``forward``."""
        qkv = torch.unflatten(projected, -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, T, d)
        if slot is None:
            cache[:, :, :, : projected.shape[1]].copy_(qkv[1:])
        else:
            cache.scatter_(3, slot[:, :, None, None].expand_as(qkv[1:]), qkv[1:])
        return attend(qkv[0], cache).transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Projection(width, 4 * width)
        self.c_proj = Projection(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.width)
        self.mlp = FeedForward(shape.width)

    def forward(self, x: Tensor, cache: Tensor, slot: Tensor | None, attend: Attend) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, slot, attend)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out

    @property
    def weights_before(self) -> tuple[Tensor, ...]:
        """What `between` needs of the block that follows."""
        norm, projection = self.ln_1, self.attn.c_attn
        return norm.weight, norm.bias, projection.weight, projection.bias

    @property
    def weights_after(self) -> tuple[Tensor, ...]:
        """What `between` needs of the block that ends."""
        out, norm, wide, narrow = self.attn.c_proj, self.ln_2, self.mlp.c_fc, self.mlp.c_proj
        return (
            out.weight, out.bias, norm.weight, norm.bias, wide.weight, wide.bias, narrow.weight, narrow.bias
        )  # fmt: skip


Between = Callable[..., tuple[Tensor, Tensor]]


def between(
    x: Tensor, mixed: Tensor,
    out: Tensor, out_bias: Tensor, norm_2: Tensor, norm_2_bias: Tensor,
    wide: Tensor, wide_bias: Tensor, narrow: Tensor, narrow_bias: Tensor,
    norm_1: Tensor, norm_1_bias: Tensor, qkv: Tensor, qkv_bias: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """From the attention of one block to that of the next: the state ``x`` and weighted values, each ``(B, T, width)``.

    Returns the state and the next block's queries, keys and values ``(B, T, 3 · width)``. The weights are arguments, so
    that one compiled function serves all blocks.
    """
    size = x.shape[-1:]
    x = x + F.linear(mixed, out.mT, out_bias)
    hidden = F.gelu(F.linear(F.layer_norm(x, size, norm_2, norm_2_bias), wide.mT, wide_bias), approximate="tanh")
    x = x + F.linear(hidden, narrow.mT, narrow_bias)
    return x, F.linear(F.layer_norm(x, size, norm_1, norm_1_bias), qkv.mT, qkv_bias)


class Transformer(nn.Module):
    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        self.between: Between = between
        """Computes all but the attentions of a decoding step; may be compiled."""
        self.reads_lengths = False
        """Whether the attentions of a decoding step read what each row has filled, and not a span of slots."""

    @property
    def blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.h))

    def forward(self, x: Tensor, cache: Tensor, slot: Tensor | None, attend: Attend) -> Tensor:
        if slot is not None:
            return self._step(x, cache, slot, attend)
        for block, layer in zip(self.h, cache, strict=True):
            x = block(x, layer, slot, attend)
        out: Tensor = self.ln_f(x)
        return out

    def _step(self, x: Tensor, cache: Tensor, slot: Tensor, attend: Attend) -> Tensor:
        """The same for one input per row, cut at the attentions in place of the blocks."""
        blocks = self.blocks
        projected = blocks[0].attn.c_attn(blocks[0].ln_1(x))
        for block, following, layer in zip(blocks, blocks[1:], cache, strict=False):
            mixed = block.attn.mix(projected, layer, slot, attend)
            x, projected = self.between(x, mixed, *block.weights_after, *following.weights_before)
        last = blocks[-1]
        x = x + last.attn.c_proj(last.attn.mix(projected, cache[len(blocks) - 1], slot, attend))
        out: Tensor = self.ln_f(x + last.mlp(last.ln_2(x)))
        return out


class Positions(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(count, width)


class CodeGpt(nn.Module):
    """Maps a prefix and text to one latent and one row of logits per code; subclasses define the prefix."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.shape = shape
        self.text_embedding = nn.Embedding(shape.text_tokens + 1, shape.width)
        self.mel_embedding = nn.Embedding(shape.mel_codes, shape.width)
        self.text_pos_embedding = Positions(shape.max_text + 2, shape.width)
        self.mel_pos_embedding = Positions(shape.max_mel + 3, shape.width)
        self.gpt = Transformer(shape)
        self.final_norm = nn.LayerNorm(shape.width)
        self.mel_head = nn.Linear(shape.width, shape.mel_codes)

    def words(self, text_ids: Tensor) -> Tensor:
        """Ids ``(n,)`` → embeddings between START and STOP ``(n + 2, width)``."""
        ids = F.pad(F.pad(text_ids, (1, 0), value=self.shape.start_text), (0, 1), value=self.shape.stop_text)
        text: Tensor = self.text_embedding(ids) + self.text_pos_embedding.emb.weight[: ids.shape[0]]
        return text

    def started(self, prefix: Tensor) -> Tensor:
        """Append START_MEL to the inputs ``(n, width)``: ``(n + 1, width)``."""
        start = self.mel_embedding.weight[self.shape.start_mel] + self.mel_pos_embedding.emb.weight[0]
        return torch.cat([prefix, start[None]])

    def codes(self, codes: Tensor, position: Tensor) -> Tensor:
        """Codes ``(B,)`` at mel positions ``(B,)`` → inputs ``(B, 1, width)``."""
        x: Tensor = self.mel_embedding(codes) + self.mel_pos_embedding.emb(position)
        return x[:, None]

    def read(self, inputs: Tensor, cache: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Write inputs ``(B, T, width)`` to the first slots of a cache; return as `forward` for input ``last (1,)``.

        The inputs behind that one have no effect.
        """
        return self._latent_and_logits(self.gpt(inputs, cache, None, causal).index_select(1, last))

    def forward(self, inputs: Tensor, cache: Tensor, slot: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """One input per row ``(B, 1, width)`` → latent ``(B, width)`` and float32 logits ``(B, codes)``.

        Args:
            inputs: The inputs.
            cache: The ``B`` rows of a cache, ``(layers, 2, B, heads, slots, head width)``.
            slot: Where each input is written, ``(B, 1)``; it attends to the slots up to there.
            slots: The numbers of the slots that may be read, ``(span,)``.
        """
        if self.gpt.reads_lengths:
            attend = up_to(slot, self.shape.heads, cache.shape[4])
        else:
            attend = masked(slot, slots, inputs.dtype)
        return self._latent_and_logits(self.gpt(inputs, cache, slot, attend))

    def _latent_and_logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        latent: Tensor = self.final_norm(hidden[:, 0])
        return latent, self.mel_head(latent).float()


class Gpt(CodeGpt):
    """The GPT of 1.0 and 1.5; conditioning latents represent the voice."""

    def __init__(self, shape: GptShape, conditioning_encoder: Conformer, perceiver_encoder: Perceiver) -> None:
        super().__init__(shape)
        self.conditioning_encoder = conditioning_encoder
        self.perceiver_encoder = perceiver_encoder
        self.text_head = nn.Linear(shape.width, shape.text_tokens + 1)

    def condition(self, mel: Tensor) -> Tensor:
        """Log-mel ``(mels, T)`` → conditioning ``(latents, width)``."""
        latents: Tensor = self.perceiver_encoder(self.conditioning_encoder(mel.mT[None]))
        return latents[0]

    def prompt(self, conditioning: Tensor, text_ids: Tensor) -> Tensor:
        """Conditioning ``(latents, width)``, ids ``(n,)`` → all inputs up to START_MEL ``(latents + n + 3, width)``."""
        text = self.words(text_ids)
        return self.started(torch.cat([conditioning.to(text.dtype), text]))
