"""The image encoder f: a ViT over the tiled views, with Cayley-STRING in every layer on each patch's mean world XYZ.

Paper Section III-B: B/16, 12 layers, 768 wide, 12 heads, MAP head; 94M parameters with learnt position embeddings.

A patch that shows no point has no coordinates and nothing to say: it is left out. Its token is masked from every
attention and from pooling, its coordinates are zero, and it is never read by the policy. Since attention does not care
for order, leaving patches out is the same as masking them, only faster: `forward(pack=True)` does so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clamp_ros.contract.views import TILED_SHAPE
from clamp_training.config import ImageEncoderConfig
from clamp_training.networks.layers import AttentionPool, EncoderBlock, key_mask
from clamp_training.networks.string import CayleyString, Rotator, fold


@dataclass
class ImageTokens:
    """Unpooled tokens of a batch.

    Attributes:
        tokens: (B, T, D), after the final norm.
        valid: (B, T) bool; False where the patch shows no point, or the slot is padding of a packed batch.
        index: (B, T) int64, the patch's place in the full grid, row by row.
    """

    tokens: Tensor
    valid: Tensor
    index: Tensor


def patchify(views: Tensor, patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, H, W, 4) views to patches (B, T, patch*patch*4), mean XYZ (B, T, 3) over valid pixels, valid (B, T).

    A pixel is valid where its depth is positive. T = (H / patch) * (W / patch), row by row.
    """
    b, h, w, c = views.shape
    patches = views.reshape(b, h // patch, patch, w // patch, patch, c).transpose(2, 3)
    patches = patches.reshape(b, (h // patch) * (w // patch), patch * patch, c)
    seen = (patches[..., 0] > 0).to(views.dtype)
    count = seen.sum(dim=-1, keepdim=True)
    coordinates = (patches[..., 1:] * seen[..., None]).sum(dim=2) / count.clamp(min=1.0)
    return patches.flatten(2), coordinates, count[..., 0] > 0


def pack_indices(valid: Tensor) -> Tensor:
    """(B, T) bool to (B, k) indices that bring the valid patches of each row to the front; k is the largest count."""
    k = max(1, int(valid.sum(dim=1).max()))
    return torch.argsort(valid.logical_not().to(torch.uint8), dim=1, stable=True)[:, :k]


class ImageEncoder(nn.Module):
    """Tiled views (B, h, h * views, 4) in metres to tokens and the pooled embedding.

    Args:
        config: sizes.
        tiled: the views' shape; by default the paper's, (224, 1120, 4).
    """

    looked_at: Tensor

    def __init__(self, config: ImageEncoderConfig, tiled: tuple[int, int, int] = TILED_SHAPE) -> None:
        super().__init__()
        self.config = config
        height, width, channels = tiled
        self.num_tokens = self.count_tokens(config, tiled)
        self.embed = nn.Linear(config.patch**2 * channels, config.width)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.position = nn.Parameter(torch.randn(self.num_tokens, config.width) / config.width**0.5)
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.heads, config.mlp, config.dropout) for _ in range(config.depth)
        )
        self.strings = nn.ModuleList(
            CayleyString(config.heads, config.width // config.heads, config.string_scale)
            for _ in range(config.depth if config.string else 0)
        )
        self.norm = nn.LayerNorm(config.width)
        self.pool = AttentionPool(config.width, config.heads, config.mlp)
        self.folded = False
        columns = torch.arange(self.num_tokens) % (width // config.patch)
        tiles = columns // (height // config.patch)  # the views are square
        self.register_buffer("looked_at", torch.isin(tiles, torch.tensor(config.tiles)), persistent=False)

    @staticmethod
    def count_tokens(config: ImageEncoderConfig, tiled: tuple[int, int, int] = TILED_SHAPE) -> int:
        """Patches of the full grid.

        Raises:
            ValueError: the patch does not divide a view.
        """
        height, width, _ = tiled
        if height % config.patch:
            raise ValueError(f"patch {config.patch} does not divide the views' {height} pixels")
        return (height // config.patch) * (width // config.patch)

    def forward(self, views: Tensor, pack: bool = False) -> ImageTokens:
        """Unpooled tokens; `pack` keeps only as many slots as the fullest row needs."""
        patches, coordinates, valid = patchify(views, self.config.patch)
        valid = valid & self.looked_at
        index = torch.arange(self.num_tokens, device=views.device).expand(views.shape[0], -1)
        if pack:
            index = pack_indices(valid)
            patches = torch.gather(patches, 1, index[..., None].expand(-1, -1, patches.shape[-1]))
            coordinates = torch.gather(coordinates, 1, index[..., None].expand(-1, -1, 3))
            valid = torch.gather(valid, 1, index)
        x = self.embed(patches) + self.position[index]
        mask = key_mask(valid)
        for i in range(self.config.depth):
            if self.config.checkpoint and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(self._layer, i, x, coordinates, mask, use_reentrant=False))
            else:
                x = self._layer(i, x, coordinates, mask)
        return ImageTokens(self.norm(x), valid, index)

    def _layer(self, i: int, x: Tensor, coordinates: Tensor, mask: Tensor) -> Tensor:
        rotation = None
        if self.config.string:
            rotation = Rotator(cast(CayleyString, self.strings[i]), coordinates, self.folded)
        return self.blocks[i](x, mask=mask, rotation=rotation)

    def pooled(self, tokens: ImageTokens) -> Tensor:
        """The (B, D) embedding of the contrastive loss, not normalised."""
        return self.pool(tokens.tokens, tokens.valid)

    def for_inference(self) -> ImageEncoder:
        """An equal copy with every P folded into its query and key projections."""
        out = copy.deepcopy(self).eval()
        if not out.folded:
            for block, string in zip(out.blocks, out.strings, strict=False):
                attention = cast(EncoderBlock, block).attention
                fold(cast(CayleyString, string), attention.query, attention.key)
            out.folded = True
        return out
