"""Cayley-STRING: relative positional encoding by learnt rotations of queries and keys (arXiv 2502.02562; paper III-D).

A token at coordinates r (3,) has its query and key mapped by ``R(r) = RoPE(r) P``: P is a learnt orthogonal matrix, one
a head, applied FIRST; RoPE(r) then rotates the d/2 coordinate pairs by angles that are linear in r. Scores depend on
the difference of coordinates alone. In the other order P would cancel in q.k and do nothing. (The paper's Lemma 3.1
writes P RoPE P^T; the outer P cancels in the score.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CayleyString(nn.Module):
    """One layer's encoding.

    Args:
        heads: h.
        head_width: d, even.
        scale: coordinates (metres) are multiplied by this first, so that one unit is a distance that matters:
            20 makes a unit of 5 cm. RoPE's usual frequencies assume units of a patch index.
    """

    def __init__(self, heads: int, head_width: int, scale: float = 20.0) -> None:
        super().__init__()
        if head_width % 2:
            raise ValueError(f"head width {head_width} is odd; rotations act on pairs")
        self.scale = scale
        self.head_width = head_width
        pairs = head_width // 2
        directions = nn.functional.normalize(torch.randn(heads, 3, pairs), dim=1)
        magnitudes = torch.logspace(0.0, -2.0, pairs)
        self.frequencies = nn.Parameter(directions * magnitudes)
        """(h, 3, d/2): the angle of pair n is ``sum over axes of frequencies[:, axis, n] * r[axis]``."""
        self.skew = nn.Parameter(0.02 * torch.randn(heads, head_width * (head_width - 1) // 2))
        """(h, d(d-1)/2): the upper triangle of the antisymmetric S."""

    def orthogonal(self) -> Tensor:
        """P = (I - S)(I + S)^-1, (h, d, d)."""
        d = self.head_width
        rows, columns = torch.triu_indices(d, d, offset=1, device=self.skew.device)
        s = self.skew.new_zeros(self.skew.shape[0], d, d)
        s[:, rows, columns] = self.skew
        s = s - s.transpose(1, 2)
        eye = torch.eye(d, device=s.device, dtype=s.dtype)
        # (I - S) and (I + S)^-1 commute, so a left solve gives the product
        return torch.linalg.solve(eye + s, eye - s)

    def angles(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, h, N, d/2) of (B, N, 3) coordinates in metres; in float32.

        Products and a sum in place of a matrix product, which an autocast to bfloat16 would take: ten radians would be
        wrong by 0.03.
        """
        r, f = coordinates.float() * self.scale, self.frequencies.float()
        x, y, z = (r[:, None, :, axis, None] * f[None, :, axis, None, :] for axis in range(3))
        angle = x + y + z
        return angle.cos(), angle.sin()

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """RoPE: (B, h, N, d) with pairs (2k, 2k+1) rotated."""
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)

    def turned(self, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """A query or key projection's weight (D, D) and bias (D,), followed by P in every head."""
        p = self.orthogonal()
        heads, d = p.shape[0], p.shape[1]
        weight = torch.bmm(p, layer.weight.reshape(heads, d, -1)).reshape(layer.weight.shape)
        return weight, torch.bmm(p, layer.bias.reshape(heads, d, 1)).reshape(-1)


class Rotator:
    """A layer's STRING bound to one batch of coordinates (B, N, 3); `folded` if P is in the projections already."""

    def __init__(self, string: CayleyString, coordinates: Tensor, folded: bool) -> None:
        self.string = string
        self.cos, self.sin = string.angles(coordinates)
        self.folded = folded

    def project(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """P after the projection; it is the weight that is multiplied, being smaller than the batch."""
        return layer(x) if self.folded else nn.functional.linear(x, *self.string.turned(layer))

    def rotate(self, x: Tensor) -> Tensor:
        """RoPE, after P."""
        return self.string.rotate(x, self.cos, self.sin)


@torch.no_grad()
def fold(string: CayleyString, query: nn.Linear, key: nn.Linear) -> None:
    """Multiplies P into the query and key projections in place, so that inference only rotates."""
    for layer in (query, key):
        weight, bias = string.turned(layer)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
