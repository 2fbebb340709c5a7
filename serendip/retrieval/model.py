"""The sequence model: which item a user goes on to, from the items before it.

SASRec (arXiv 1808.09781) with pre-layer norm, SwiGLU, residuals gated by their input, and
item vectors tied between input and output. This module knows no log, no item ID and no ONNX;
items are numbers, 1 to N in item order, and 0 is padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING = 0


@dataclass(frozen=True)
class ModelShape:
    """What the weights' shapes follow from.

    Attributes:
        items: N.
        dimensions: d, a multiple of heads.
        max_history: events that the model reads, and learned positions.
    """

    items: int
    dimensions: int
    blocks: int
    heads: int
    max_history: int


class Dropout(nn.Module):
    """Zeroes elements at random while training, and scales the others up to keep the mean.

    torch's own takes a draw of its generator for each element, a tenth of a training step;
    here each draw serves eight. So the share is rounded to 1/256.
    """

    def __init__(self, share: float):
        super().__init__()
        self.dropped = round(share * 256)  # of the values of a byte

    def forward(self, x: Tensor) -> Tensor:
        """float32[...] -> float32[...]."""
        if not self.training or not self.dropped:
            return x
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None)
        kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * kept.to(x.dtype).mul_(256 / (256 - self.dropped))


class Block(nn.Module):
    """Causal self-attention, then SwiGLU; each is scaled by a gate on what it is added to."""

    def __init__(self, dimensions: int, heads: int, dropout: float):
        super().__init__()
        # SwiGLU has three matrices instead of two: 8/3 d keeps the size of a 4 d layer.
        inner = max(8, int(dimensions * 8 / 3) // 8 * 8)
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dimensions)
        self.attention_in = nn.Linear(dimensions, 3 * dimensions)
        self.attention_out = nn.Linear(dimensions, dimensions)
        self.attention_gate = nn.Linear(dimensions, dimensions)
        self.inner_norm = nn.LayerNorm(dimensions)
        self.inner_in = nn.Linear(dimensions, 2 * inner)
        self.inner_out = nn.Linear(inner, dimensions)
        self.inner_gate = nn.Linear(dimensions, dimensions)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """float32[B, T, d] -> float32[B, T, d]. Padding stands right, so causality hides it."""
        query, key, value = self.attention_in(self.attention_norm(x)).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value), is_causal=True
        )
        return self._after_attention(x, mixed)

    def last(self, x: Tensor, length: Tensor) -> Tensor:
        """What forward gives at each row's last position: float32[B, 1, d].

        Keys and values of all positions, query and everything after it of one.
        """
        d = x.shape[2]
        at_last = (length - 1)[:, None, None].expand(-1, 1, d)
        normed = self.attention_norm(x)
        weight, bias = self.attention_in.weight, self.attention_in.bias
        query = F.linear(normed.gather(1, at_last), weight[:d], bias[:d])
        key, value = F.linear(normed, weight[d:], bias[d:]).chunk(2, dim=-1)
        present = torch.arange(x.shape[1], device=x.device)[None, :] < length[:, None]
        mixed = F.scaled_dot_product_attention(
            self._split(query),
            self._split(key),
            self._split(value),
            attn_mask=present[:, None, None, :],
        )
        return self._after_attention(x.gather(1, at_last), mixed)

    def _split(self, x: Tensor) -> Tensor:
        """float32[B, T, d] -> float32[B, heads, T, d / heads]."""
        b, t, d = x.shape
        return x.view(b, t, self.heads, d // self.heads).transpose(1, 2)

    def _after_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        attended = self.attention_out(mixed.transpose(1, 2).reshape(x.shape))
        x = x + self.dropout(attended * torch.sigmoid(self.attention_gate(x)))
        value, gate = self.inner_in(self.inner_norm(x)).chunk(2, dim=-1)
        y = self.inner_out(F.silu(value) * gate)
        out: Tensor = x + self.dropout(y * torch.sigmoid(self.inner_gate(x)))
        return out


class SequenceModel(nn.Module):
    """Item vectors, learned positions, blocks; the score of an item is one dot product."""

    def __init__(self, shape: ModelShape, dropout: float = 0.0):
        super().__init__()
        self.shape = shape
        self.item = nn.Embedding(shape.items + 1, shape.dimensions, padding_idx=PADDING)
        self.position = nn.Embedding(shape.max_history, shape.dimensions)
        self.bias = nn.Parameter(torch.zeros(shape.items + 1))
        self.blocks = nn.ModuleList(
            Block(shape.dimensions, shape.heads, dropout) for _ in range(shape.blocks)
        )
        self.norm = nn.LayerNorm(shape.dimensions)
        self.dropout = Dropout(dropout)
        with torch.no_grad():
            self.item.weight.normal_(std=0.02)
            self.item.weight[PADDING] = 0
            self.position.weight.normal_(std=0.02)

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        """User vectors after every event: float32[B, T, d]; for training.

        Args:
            ids: int64[B, T], oldest first, padded on the right; T <= max_history.
            length: int64[B], 1 to T.
        """
        x = self._embed(ids, length)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def encode(self, ids: Tensor, length: Tensor) -> Tensor:
        """User vectors after the last event: float32[B, d]; arguments as of forward."""
        x = self._embed(ids, length)
        for block in self.blocks[:-1]:
            x = block(x)
        final = self.blocks[-1]
        assert isinstance(final, Block)
        out: Tensor = self.norm(final.last(x, length))
        return out[:, 0]

    def item_matrix(self) -> Tensor:
        """float32[N, d + 1] in item order: item vectors, and the bias as the last column."""
        return torch.cat([self.item.weight[1:], self.bias[1:, None]], dim=1)

    def _embed(self, ids: Tensor, length: Tensor) -> Tensor:
        # Positions count back from the last event, whatever the row's length is.
        steps = torch.arange(ids.shape[1], device=ids.device)[None, :]
        last = self.shape.max_history - 1
        position = (steps + (last + 1 - length)[:, None]).clamp(0, last)
        x = self.item(ids) * math.sqrt(self.shape.dimensions) + self.position(position)
        out: Tensor = self.dropout(x)
        return out


class UserEncoder(nn.Module):
    """The exported graph: user vectors with a 1 appended, for a matrix that ends in the bias."""

    def __init__(self, model: SequenceModel):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        """int64[B, T], int64[B] -> float32[B, d + 1]."""
        vector = self.model.encode(ids, length)
        return torch.cat([vector, torch.ones_like(vector[:, :1])], dim=1)
