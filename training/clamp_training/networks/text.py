"""The text encoder g, used in pretraining alone: a CLIP-style causal Transformer over tokenised text.

Paper Section III-B: 12 layers, 768 wide, 12 heads, 256 tokens, MLP 3072; 277M parameters with mT5's 250,112 entries.
The offline default reads bytes, which needs no vocabulary file; a `tokenizers` JSON file can be named instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clamp_ros.contract.errors import ConfigError
from clamp_training.config import TextEncoderConfig
from clamp_training.networks.layers import EncoderBlock

PAD, END = 0, 1
_BYTE_OFFSET = 3  # as ByT5: pad, end, unknown, then the 256 bytes
BYTE_VOCABULARY = 256 + _BYTE_OFFSET


class Tokenizer:
    """Text to (length,) int64 token ids, ended by END and padded by PAD; longer text is cut, and END kept."""

    def __init__(self, config: TextEncoderConfig) -> None:
        self.length = config.tokens
        self._model = None
        if config.tokenizer == "bytes":
            if config.vocabulary < BYTE_VOCABULARY:
                raise ConfigError(
                    f"the byte tokenizer needs a vocabulary of {BYTE_VOCABULARY}, got {config.vocabulary}"
                )
            return
        if not Path(config.tokenizer).is_file():
            raise ConfigError(
                f"text.tokenizer is {config.tokenizer!r}: expected 'bytes' or the path of a tokenizers JSON file, such "
                "as the tokenizer.json of google/mt5-base, downloaded beforehand"
            )
        from tokenizers import Tokenizer as FileTokenizer  # only a user with such a file needs the library

        self._model = FileTokenizer.from_file(config.tokenizer)
        if self._model.get_vocab_size() > config.vocabulary:
            raise ConfigError(
                f"{config.tokenizer} has {self._model.get_vocab_size()} entries, text.vocabulary is {config.vocabulary}"
            )

    def _tokens(self, text: str) -> list[int]:
        if self._model is None:
            return [byte + _BYTE_OFFSET for byte in text.encode()]
        return list(self._model.encode(text, add_special_tokens=False).ids)

    def fits(self, text: str) -> bool:
        """Whether all of a text is read."""
        return len(self._tokens(text)) < self.length

    def ids(self, text: str) -> NDArray[np.int64]:
        """(tokens,) int64."""
        tokens = self._tokens(text)
        out = np.full(self.length, PAD, dtype=np.int64)
        tokens = [*tokens[: self.length - 1], END]
        out[: len(tokens)] = tokens
        return out

    def batch(self, texts: Sequence[str]) -> Tensor:
        """(B, tokens) int64."""
        return torch.from_numpy(np.stack([self.ids(text) for text in texts]))


class TextEncoder(nn.Module):
    """Token ids (B, L) to the embedding (B, D), read at the END token as CLIP does."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.position = nn.Parameter(0.01 * torch.randn(config.tokens, config.width))
        self.blocks = nn.ModuleList(EncoderBlock(config.width, config.heads, config.mlp) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor) -> Tensor:
        """The (B, D) embedding of the contrastive loss, not normalised."""
        length = int((ids != PAD).sum(dim=1).max())  # causal, so trailing padding changes nothing
        ids = ids[:, :length]
        x = self.embed(ids) + self.position[:length]
        for block in self.blocks:
            x = block(x, causal=True)
        end = (ids == END).to(torch.uint8).argmax(dim=1)
        return self.norm(x[torch.arange(ids.shape[0], device=ids.device), end])
