"""Standard parts: multi-head attention with key masks and cacheable K/V, MLP, pre-norm blocks, attention pooling (MAP).

Shapes: B batch, N queries, S keys, D width, h heads, d = D / h. Masks are (B, S) bool, True where a key may be seen.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rotation(Protocol):
    """A relative positional encoding of queries and keys, bound to one batch's coordinates; see `string.py`."""

    def project(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """(B, N, D) through a query or key projection, with whatever comes before the rotation."""
        ...

    def rotate(self, x: Tensor) -> Tensor:
        """(B, h, N, d) queries or keys, rotated by their tokens' coordinates."""
        ...


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) to (B, h, N, d)."""
    b, n, width = x.shape
    return x.reshape(b, n, heads, width // heads).transpose(1, 2)


def key_mask(valid: Tensor) -> Tensor:
    """(B, S) bool to an attention mask (B, 1, 1, S); a row with nothing valid sees everything, lest NaN arise."""
    seen = valid | ~valid.any(dim=1, keepdim=True)
    return seen[:, None, None, :]


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be computed once and reused."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) to keys and values (B, h, S, d)."""
        return split_heads(self.key(memory), self.heads), split_heads(self.value(memory), self.heads)

    def attend(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """(B, N, D) queries over given keys and values (already rotated) to (B, N, D)."""
        queries = _encoded(x, self.query, self.heads, rotation)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Self-attention of x, or cross-attention of x over memory (B, S, D)."""
        source = x if memory is None else memory
        keys, values = _encoded(source, self.key, self.heads, rotation), split_heads(self.value(source), self.heads)
        return self.attend(x, keys, values, mask, causal, rotation)


def _encoded(x: Tensor, layer: nn.Linear, heads: int, rotation: Rotation | None) -> Tensor:
    """(B, N, D) to position-encoded queries or keys (B, h, N, d)."""
    if rotation is None:
        return split_heads(layer(x), heads)
    return rotation.rotate(split_heads(rotation.project(x, layer), heads))


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.down(self.dropout(F.gelu(self.up(x))))


class EncoderBlock(nn.Module):
    """Pre-norm Transformer encoder block."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, causal: bool = False, rotation: Rotation | None = None
    ) -> Tensor:
        """(B, N, D) through the block."""
        y = self.attention(self.norm_attention(x), mask=mask, causal=causal, rotation=rotation)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


class DecoderBlock(nn.Module):
    """Pre-norm Transformer decoder block: self-attention, cross-attention over cached keys and values, MLP."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads, dropout)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D) through the block; keys and values are of `cross_attention`.

        Of fewer keys and values (B / n, h, S, d), each serves n sequences, whose queries are asked as those of one.
        """
        x = x + self.dropout(self.self_attention(self.norm_self(x)))
        queries = self.norm_cross(x)
        if len(keys) != len(x):
            queries = queries.reshape(len(keys), -1, x.shape[2])
        x = x + self.dropout(self.cross_attention.attend(queries, keys, values, mask).reshape(x.shape))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


def compile_blocks(module: nn.Module) -> None:
    """Has torch compile a network's Transformer blocks, when they first run; blocks of one kind share their code.

    Sizes stay open, since the number of patches changes from batch to batch. Copies of the module are not compiled.
    """
    for block in module.modules():
        if isinstance(block, EncoderBlock | DecoderBlock):
            block.compile(dynamic=True)


class AttentionPool(nn.Module):
    """Multi-head attention pooling, MAP (Lee et al. 2019, as in big_vision): one learnt query, then a residual MLP."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        nn.init.xavier_uniform_(self.probe)
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, S, D) tokens to the pooled (B, D)."""
        probe = self.probe.expand(tokens.shape[0], -1, -1)
        x = self.attention(probe, tokens, mask=None if valid is None else key_mask(valid))
        return (x + self.mlp(self.norm(x)))[:, 0]
