"""The policy: an encoder over all observation tokens, and a decoder that predicts a noised chunk's noise.

Paper Section III-C, after ALOHA Unleashed: colour feature maps, unpooled frozen CLAMP tokens and proprioception are
concatenated, given positional embeddings and encoded; the decoder takes the latents, the noised chunk with a learnt
positional embedding, and a one-hot encoding of the diffusion step. The noised chunk enters the decoder only, so the
encoder and the decoder's cross-attention keys and values are computed once a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_ros.policy.cartesian import action_width
from clamp_training.config import DiffusionConfig, PolicyConfig
from clamp_training.networks.image import ImageTokens
from clamp_training.networks.layers import DecoderBlock, EncoderBlock, key_mask
from clamp_training.networks.rgb import RgbBackbones


@dataclass
class Context:
    """What the denoiser reads at every step: keys, values (L, B, h, S, d) of each decoder layer and valid (B, S)."""

    keys: Tensor
    values: Tensor
    valid: Tensor


class ChunkPolicy(nn.Module):
    """What every policy has: the observation's encoder, and a decoder from 50 tokens, one an action, to a chunk.

    Args:
        config: widths and layers.
        image_tokens: patches of the image encoder's full grid. Every policy has their positional embeddings, also one
            that is pretrained without CLAMP tokens, so that it can be fine-tuned with them.
    """

    def __init__(self, config: PolicyConfig, image_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.action_width = action_width(config.actions)
        width = config.width
        self.rgb = RgbBackbones(config.rgb, width)
        self.proprio = nn.Linear(NUM_JOINTS, width)
        self.position_image = self._table(image_tokens)
        self.position_history = self._table(CHUNK_SIZE)
        self.position_proprio = self._table(1)
        self.encoder = nn.ModuleList(
            EncoderBlock(width, config.heads, config.mlp, config.dropout) for _ in range(config.encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)

    def _table(self, rows: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(rows, self.config.width) / self.config.width**0.5)

    def _add_decoder(self) -> None:
        config = self.config
        self.decoder = nn.ModuleList(
            DecoderBlock(config.width, config.heads, config.mlp, config.dropout) for _ in range(config.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, self.action_width)
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.head.weight, std=0.02)

    def encoded(
        self,
        image: ImageTokens | None,
        history: Tensor | None,
        rgb: Mapping[str, Tensor],
        proprio: Tensor,
        further: Tensor | None = None,
    ) -> Context:
        """An observation, encoded once, as the decoder's keys and values; see `latents`."""
        x, seen = self.latents(image, history, rgb, proprio, further)
        cached = [cast(DecoderBlock, block).cross_attention.keys_values(x) for block in self.decoder]
        return Context(torch.stack([k for k, _ in cached]), torch.stack([v for _, v in cached]), seen)

    def latents(
        self,
        image: ImageTokens | None,
        history: Tensor | None,
        rgb: Mapping[str, Tensor],
        proprio: Tensor,
        further: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The encoder's latents (B, S, D) of an observation, and which of them are valid (B, S).

        Args:
            image: CLAMP image tokens, or None to pretrain the policy without them.
            history: CLAMP action tokens (B, 50, D), or the pooled one (B, 1, D), or None likewise.
            rgb: colour of each camera, (B, 3, h, w) in 0..1.
            proprio: (B, 14) normalised joint positions.
            further: tokens (B, N, D) with their positional embeddings, of the policy's own.
        """
        tokens = [self.proprio(proprio)[:, None] + self.position_proprio]
        valid = [torch.ones_like(proprio[:, :1], dtype=torch.bool)]
        if self.config.rgb.cameras:
            colour = self.rgb(rgb)
            tokens.append(colour)
            valid.append(torch.ones_like(colour[..., 0], dtype=torch.bool))
        if further is not None:
            tokens.append(further)
            valid.append(torch.ones_like(further[..., 0], dtype=torch.bool))
        if history is not None:
            tokens.append(history + self.position_history[: history.shape[1]])
            valid.append(torch.ones_like(history[..., 0], dtype=torch.bool))
        if image is not None:
            tokens.append(image.tokens + self.position_image[image.index])
            valid.append(image.valid)
        x, seen = torch.cat(tokens, dim=1), torch.cat(valid, dim=1)
        mask = key_mask(seen)
        for block in self.encoder:
            x = block(x, mask=mask)
        return self.encoder_norm(x), seen

    def decoded(self, x: Tensor, context: Context) -> Tensor:
        """(B, 50, D) tokens, one an action, to (B, 50, A); see `denoise` for B."""
        mask = key_mask(context.valid)
        # unbound at once: the gradient of an index is as large as what it picks from
        for block, keys, values in zip(self.decoder, context.keys.unbind(), context.values.unbind(), strict=True):
            x = block(x, keys, values, mask)
        return self.head(self.decoder_norm(x))


class DiffusionPolicy(ChunkPolicy):
    """Noise prediction network epsilon_theta(O_t, a^k, k).

    Args:
        config, image_tokens: as of `ChunkPolicy`.
        diffusion: its number of steps K is the length of the one-hot encoding.
    """

    alpha_bar: Tensor

    def __init__(self, config: PolicyConfig, diffusion: DiffusionConfig, image_tokens: int) -> None:
        super().__init__(config, image_tokens)
        self.train_steps = diffusion.train_steps
        self.velocity = diffusion.parametrization == "velocity"
        alpha_bar = torch.from_numpy(diffusion.noise_schedule().alpha_bar).float()
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)
        self.action = nn.Linear(self.action_width, config.width)
        self.position_action = self._table(CHUNK_SIZE)
        self.step = nn.Linear(self.train_steps, config.width, bias=False)
        self._add_decoder()

    def context(
        self, image: ImageTokens | None, history: Tensor | None, rgb: Mapping[str, Tensor], proprio: Tensor
    ) -> Context:
        """The observation, encoded once; see `encoded`."""
        return self.encoded(image, history, rgb, proprio)

    def denoise(self, noisy: Tensor, step: Tensor, context: Context, prefix: Tensor | None = None) -> Tensor:
        """Predicted noise (B, 50, 14) of a noised chunk (B, 50, 14) at step (B,) int64.

        The context may be of fewer observations, B / n, of which the b-th goes with the chunks b * n to b * n + n - 1.
        `prefix` (B,) int64 says how many of the chunk's first actions are clean. Theirs is no step of the one-hot
        encoding, which is all zeros for them (arXiv 2512.05964: a time for each action); their noise means nothing.
        """
        one_hot = F.one_hot(step, self.train_steps).to(noisy.dtype)[:, None]
        if prefix is not None:
            one_hot = one_hot * _after(prefix)[..., None]
        x = self.action(noisy) + self.position_action + self.step(one_hot)
        out = self.decoded(x, context)
        if not self.velocity:
            return out
        a = self.alpha_bar[step][:, None, None]
        return a.sqrt() * out + (1.0 - a).sqrt() * noisy

    def loss(self, data: dict[str, Any], image: ImageTokens | None, history: Tensor | None) -> Tensor:
        """The mean `noise_loss` of a batch; each observation's noise samples share its context.

        `data` holds actions (B, 50, A), proprio, rgb, steps (B, draws), noise (B, draws, 50, A), and `prefix` (B,
        draws) where it is trained.
        """
        draws = data["steps"].shape[1]
        clean = data["actions"].repeat_interleave(draws, dim=0)
        context = self.context(image, history, data["rgb"], data["proprio"])
        prefix = data["prefix"].flatten() if "prefix" in data else None
        return self.noise_loss(clean, data["noise"].flatten(0, 1), data["steps"].flatten(), context, prefix)

    def noise_loss(
        self, clean: Tensor, noise: Tensor, step: Tensor, context: Context, prefix: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the network's output for clean chunks (B, 50, 14) noised at steps (B,).

        For 'epsilon' that is the paper's objective; for 'velocity' the noise's error divided by alpha_bar. With a
        prefix (B,) the first actions stay clean, and a chunk's loss is the mean over the rest of it.
        """
        a = self.alpha_bar[step][:, None, None]
        noisy = a.sqrt() * clean + (1.0 - a).sqrt() * noise
        rest = None if prefix is None else _after(prefix)
        if rest is not None:
            noisy = torch.where(rest[..., None], noisy, clean)
        error = (self.denoise(noisy, step, context, prefix) - noise).square()
        if self.velocity:
            error = error / a
        if rest is None:
            return error.mean()
        return (torch.where(rest, error.mean(dim=2), 0.0).sum(dim=1) / rest.sum(dim=1)).mean()


def _after(prefix: Tensor) -> Tensor:
    """(B, 50) bool: which actions come after the first `prefix` (B,)."""
    return torch.arange(CHUNK_SIZE, device=prefix.device) >= prefix[:, None]
