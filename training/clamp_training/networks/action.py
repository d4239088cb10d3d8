"""The action encoder h: a Transformer encoder over the history of previous actions, with MAP pooling.

Paper Section III-B and Appendix C: 2 layers, 768 wide, 12 heads, feed-forward 2048, dropout 0.1; 18M parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_training.config import ActionEncoderConfig
from clamp_training.networks.layers import AttentionPool, EncoderBlock


class ActionEncoder(nn.Module):
    """Normalised history (B, 50, 14), newest first and zero-padded, to tokens (B, 50, D) and the pooled (B, D)."""

    def __init__(self, config: ActionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(NUM_JOINTS, config.width)
        self.position = nn.Parameter(torch.randn(CHUNK_SIZE, config.width) / config.width**0.5)
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.heads, config.mlp, config.dropout) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.pool = AttentionPool(config.width, config.heads, config.pool_mlp)

    def forward(self, history: Tensor) -> Tensor:
        """Unpooled tokens (B, 50, D), after the final norm."""
        x = self.embed(history) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def pooled(self, tokens: Tensor) -> Tensor:
        """The (B, D) embedding of the contrastive loss, not normalised."""
        return self.pool(tokens)
