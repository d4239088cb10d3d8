"""DP3's point encoder in place of the ViT (paper Table III, row 4, and Appendix D).

A PointNet as in 3D Diffusion Policy (Ze et al. 2024, arXiv 2403.03954, Appendix A): three linear layers with layer norm
and ReLU on every point alone, the largest value of each feature over all points, one linear layer with layer norm. It
reads the cropped, voxelised cloud from which the views would be rendered, all of it, and gives one token. The paper
does not say how wide its last layer is: here it is that of the other embeddings.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clamp_training.config import ImageEncoderConfig
from clamp_training.networks.image import ImageTokens

_POINTS_AT_A_TIME = 16_384
"""With `checkpoint`: so many of each cloud are computed again at a time."""


class PointEncoder(nn.Module):
    """Clouds (B, N, 3) in metres, padded with points at the origin, to one token and the embedding, which is the token.

    An empty cloud gives a token that is not valid.
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = 1
        layers: list[nn.Module] = []
        width = 3
        for hidden in config.points:
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU()]
            width = hidden
        self.each = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Linear(width, config.width), nn.LayerNorm(config.width))

    def forward(self, cloud: Tensor, pack: bool = False) -> ImageTokens:
        """The token (B, 1, D); `pack` is for the ViT's sake."""
        if self.config.checkpoint and torch.is_grad_enabled():
            parts = cloud.split(_POINTS_AT_A_TIME, dim=1)
            largest = [cast(Tensor, checkpoint(self._largest, part, use_reentrant=False)) for part in parts]
            features = torch.cat(largest, dim=1).amax(dim=1, keepdim=True)
        else:
            features = self._largest(cloud)
        valid = (cloud != 0.0).any(dim=-1).any(dim=1, keepdim=True)
        return ImageTokens(self.out(features), valid, torch.zeros_like(valid, dtype=torch.int64))

    def _largest(self, cloud: Tensor) -> Tensor:
        """(B, 1, C) the largest value of each feature."""
        there = (cloud != 0.0).any(dim=-1, keepdim=True)
        # after ReLU nothing is below zero, so that zeros in place of padding never are the largest
        return (self.each(cloud) * there).amax(dim=1, keepdim=True)

    def pooled(self, tokens: ImageTokens) -> Tensor:
        """The (B, D) embedding of the contrastive loss, not normalised."""
        return tokens.tokens[:, 0]

    def for_inference(self) -> PointEncoder:
        """A copy."""
        return copy.deepcopy(self).eval()
