"""The text encoder g, used in pretraining alone: a CLIP-style causal Transformer over tokenised text.

Paper Section III-B: 12 layers, 768 wide, 12 heads, 256 tokens, MLP 3072; 277M parameters with mT5's 250,112 entries.
The offline default reads bytes, which needs no vocabulary file; a `tokenizers` JSON file can be named instead. Either
puts its vocabulary's end after a text.
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

NOTHING = -1
"""What fills a row after its text, of no vocabulary."""
END = "</s>"
"""What ends a text in mT5's vocabulary, and in that of any tokenizer named."""
_BYTE_END = 1
_BYTE_OFFSET = 3  # as ByT5: pad, end, unknown, then the 256 bytes
BYTE_VOCABULARY = 256 + _BYTE_OFFSET


class Tokenizer:
    """Text to (length,) int64 token ids, ended by END's and filled up with NOTHING; longer text is cut, and END kept.

    Raises:
        ConfigError: the file is missing, no tokenizer, or without END, or its ids go beyond the vocabulary's size.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        self.length = config.tokens
        self._model, self._end = None, _BYTE_END
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

        try:
            self._model = FileTokenizer.from_file(config.tokenizer)
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(
                f"text.tokenizer names {config.tokenizer}, which is no tokenizers JSON: {error}"
            ) from error
        self._model.no_padding()
        self._model.no_truncation()
        end, needed = self._model.token_to_id(END), 1 + max(self._model.get_vocab().values(), default=0)
        if end is None:
            raise ConfigError(
                f"{config.tokenizer} has no token {END!r}, which ends a text; name one that has, as mT5's"
            )
        self._end = end
        if needed > config.vocabulary:
            raise ConfigError(f"{config.tokenizer} has ids up to {needed - 1}, text.vocabulary is {config.vocabulary}")

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
        out = np.full(self.length, NOTHING, dtype=np.int64)
        tokens = [*tokens[: self.length - 1], self._end]
        out[: len(tokens)] = tokens
        return out

    def batch(self, texts: Sequence[str]) -> Tensor:
        """(B, tokens) int64."""
        return torch.from_numpy(np.stack([self.ids(text) for text in texts]))


class TextEncoder(nn.Module):
    """Token ids (B, L) to the embedding (B, D), read at its last token, the text's end, as CLIP does."""

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
        lengths = (ids != NOTHING).sum(dim=1)
        longest = int(lengths.max())
        # causal, so what follows a text, whatever its embedding, changes nothing
        x = self.embed(ids[:, :longest].clamp(min=0)) + self.position[:longest]
        for block in self.blocks:
            x = block(x, causal=True)
        return self.norm(x[torch.arange(len(ids), device=ids.device), lengths - 1])
