"""The statistics of LeRobot's `meta/stats.json`: of each feature of an episode, and of several episodes together.

Shapes and keys are those of lerobot's `compute_stats.py`: min, max, mean, std, count and five quantiles; of images a
channel at a time, 0 to 1, and of depth in its own unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_PIXEL_STEP = 4
"""Every so many pixels of an image are counted, in both directions."""

Stats = dict[str, Any]


def of_values(values: NDArray[Any]) -> Stats:
    """Of (T,) or (T, D) numbers, each dimension by itself."""
    values = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    return _stats(values, len(values), (values.shape[1],))


def thinned(image: NDArray[Any]) -> NDArray[Any]:
    """The pixels of an image that are counted; lerobot leaves most out as well."""
    return image[::_PIXEL_STEP, ::_PIXEL_STEP].copy()


def of_images(images: Sequence[NDArray[Any]]) -> Stats:
    """Of (H, W, 3) uint8 colours, as fractions, or of (H, W) depths in their unit."""
    channels = 1 if images[0].ndim == 2 else images[0].shape[2]
    scale = 1.0 if channels == 1 else 1.0 / 255.0
    pixels = np.concatenate([image.reshape(-1, channels) for image in images]).astype(np.float64) * scale
    return _stats(pixels, len(images), (channels, 1, 1))


def _stats(values: NDArray[np.float64], count: int, shape: tuple[int, ...]) -> Stats:
    found = {
        "min": values.min(axis=0), "max": values.max(axis=0), "mean": values.mean(axis=0), "std": values.std(axis=0),
    }  # fmt: skip
    found |= dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))
    return {**{key: value.reshape(shape).tolist() for key, value in found.items()}, "count": [count]}


def together(parts: list[Stats]) -> Stats:
    """Of all episodes, from those of each.

    Quantiles cannot be had from quantiles: as in lerobot, the lower ones are the least and the upper ones the greatest.
    """
    counts = np.array([part["count"][0] for part in parts], np.float64)
    stacked = {key: np.array([part[key] for part in parts]) for key in parts[0] if key != "count"}
    weights = counts.reshape(-1, *(1,) * (stacked["mean"].ndim - 1)) / counts.sum()
    mean = (weights * stacked["mean"]).sum(axis=0)
    variance = (weights * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(axis=0)
    found = {"mean": mean, "std": np.sqrt(variance)}
    for key, values in stacked.items():
        if key not in found:
            low = key == "min" or QUANTILES.get(key, 1.0) <= 0.5
            found[key] = values.min(axis=0) if low else values.max(axis=0)
    return {**{key: value.tolist() for key, value in found.items()}, "count": [int(counts.sum())]}
