"""ACT, Action Chunking with Transformers: the paper's baseline, without and with CLAMP encoders (Tables I and III).

A conditional variational autoencoder (Zhao et al. 2023, arXiv 2304.13705, Section IV and Appendix C): in training an
encoder reads the joints and the whole chunk and gives the distribution of a latent "style" z; the policy sees z as one
more token beside the observation and answers the chunk at once, to an L1 loss and the KL divergence of z from a unit
normal. On the robot z is zero, the prior's mean, and there is no denoising. The observation, its encoder and the
decoder are those of the diffusion policy, so that CLAMP's tokens enter both alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_training.config import PolicyConfig
from clamp_training.networks.image import ImageTokens
from clamp_training.networks.layers import EncoderBlock
from clamp_training.networks.policy import ChunkPolicy, Context


class ActPolicy(ChunkPolicy):
    """Observation and latent to a chunk.

    Args:
        config: widths and layers; the latent's encoder has as many layers as the observation's.
        image_tokens: as of `ChunkPolicy`.
    """

    def __init__(self, config: PolicyConfig, image_tokens: int) -> None:
        super().__init__(config, image_tokens)
        width, size = config.width, config.act.latent
        self.latent = nn.Linear(size, width)
        self.position_latent = self._table(1)
        self.position_action = self._table(CHUNK_SIZE)
        """The decoder's queries, one an action."""
        self._add_decoder()
        # the latent's encoder, of training alone
        self.style_query = self._table(1)
        self.style_joints = nn.Linear(NUM_JOINTS, width)
        self.style_action = nn.Linear(self.action_width, width)
        self.position_style = self._table(2 + CHUNK_SIZE)
        self.style = nn.ModuleList(
            EncoderBlock(width, config.heads, config.mlp, config.dropout) for _ in range(config.encoder_layers)
        )
        self.style_norm = nn.LayerNorm(width)
        self.style_head = nn.Linear(width, 2 * size)

    def posterior(self, actions: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance (B, latent) of z, given the chunk (B, 50, A) and joints (B, 14)."""
        query = self.style_query.expand(len(actions), -1, -1)
        x = torch.cat([query, self.style_joints(proprio)[:, None], self.style_action(actions)], dim=1)
        x = x + self.position_style
        for block in self.style:
            x = block(x)
        mean, log_variance = self.style_head(self.style_norm(x[:, 0])).chunk(2, dim=1)
        return mean, log_variance

    def context(
        self,
        image: ImageTokens | None,
        history: Tensor | None,
        rgb: Mapping[str, Tensor],
        proprio: Tensor,
        latent: Tensor | None = None,
    ) -> Context:
        """As of `ChunkPolicy`, with a latent (B, latent); by default zero, as on the robot."""
        if latent is None:
            latent = proprio.new_zeros(len(proprio), self.config.act.latent)
        return self.encoded(image, history, rgb, proprio, self.latent(latent)[:, None] + self.position_latent)

    def actions(self, context: Context) -> Tensor:
        """The chunk (B, 50, A), normalised."""
        return self.decoded(self.position_action.expand(len(context.valid), -1, -1), context)

    def loss(self, data: dict[str, Any], image: ImageTokens | None, history: Tensor | None) -> Tensor:
        """L1 of the chunk plus the weighted KL divergence, each a mean over samples.

        `data` holds actions (B, 50, A), proprio, rgb, and `latent` (B, latent), standard normal.
        """
        mean, log_variance = self.posterior(data["actions"], data["proprio"])
        latent = mean + (0.5 * log_variance).exp() * data["latent"]
        chunk = self.actions(self.context(image, history, data["rgb"], data["proprio"], latent))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1).mean()
        return (chunk - data["actions"]).abs().mean() + self.config.act.kl_weight * divergence
