"""Frozen encoders run once over a store: the unpooled image tokens of every row, kept in memory as float16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from clamp_ros.fusion.pipeline import Fusion
from clamp_training.loop import prefetched
from clamp_training.networks.image import ImageEncoder, ImageTokens
from clamp_training.store import Store


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Ragged tokens: row i owns tokens[offsets[i]:offsets[i + 1]]; only patches that show a point are kept.

    Attributes:
        tokens: (M, D) float16.
        index: (M,) int16, each token's patch in the full grid.
        offsets: (N + 1,) int64.
    """

    tokens: NDArray[np.float16]
    index: NDArray[np.int16]
    offsets: NDArray[np.int64]

    def batch(self, rows: NDArray[np.int64]) -> ImageTokens:
        """The rows' tokens, padded to the longest."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        longest = max(1, int(counts.max()))
        tokens = np.zeros((len(rows), longest, self.tokens.shape[1]), dtype=np.float32)
        index = np.zeros((len(rows), longest), dtype=np.int64)
        for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
            start = self.offsets[row]
            tokens[b, :count] = self.tokens[start : start + count]
            index[b, :count] = self.index[start : start + count]
        valid = np.arange(longest)[None] < counts[:, None]
        return ImageTokens(torch.from_numpy(tokens), torch.from_numpy(valid), torch.from_numpy(index))


@torch.no_grad()
def extract(encoder: ImageEncoder, store: Store, fusion: Fusion, batch: int = 16) -> ImageFeatures:
    """Renders and encodes every row of a store."""
    encoder = encoder.for_inference()
    tokens: list[NDArray[np.float16]] = []
    index: list[NDArray[np.int16]] = []
    counts: list[int] = []
    starts = range(0, len(store), batch)

    def views(i: int) -> torch.Tensor:
        rows = range(starts[i], min(starts[i] + batch, len(store)))
        return torch.from_numpy(np.stack([store.views(row, fusion) for row in rows]))

    for data in tqdm(prefetched(views, 0, len(starts)), total=len(starts), desc="encoding views", unit="batch"):
        image = encoder(data, pack=True)
        for t, v, i in zip(image.tokens, image.valid, image.index, strict=True):
            tokens.append(t[v].numpy().astype(np.float16))
            index.append(i[v].numpy().astype(np.int16))
            counts.append(int(v.sum()))
    return ImageFeatures(np.concatenate(tokens), np.concatenate(index), np.concatenate([[0], np.cumsum(counts)]))
