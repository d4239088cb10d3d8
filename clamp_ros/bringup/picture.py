"""The demonstration's picture: what the cameras see, and under it the five fused views as the policy gets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.views import PAPER_VIEWS, TILED_SHAPE

WIDTH = TILED_SHAPE[1]
_HEIGHT_RANGE_M = (-0.02, 0.45)
_SHADE_M = 0.02
_EMPTY = (24, 24, 32)


def color_views(views: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours tiled views: hue by height above the table, brightness by how steeply depth changes.

    Args:
        views: (224, 1120, 4) float32 of depth, X, Y, Z in metres; all zero where nothing is seen.

    Returns:
        (224, 1120, 3) uint8 RGB.
    """
    depth, height = views[..., 0], views[..., 3]
    low, high = _HEIGHT_RANGE_M
    index = np.clip((height - low) / (high - low) * 255.0, 0.0, 255.0).astype(np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(index, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB).astype(np.float32)
    slope = np.abs(np.diff(depth, axis=0, prepend=depth[:1])) + np.abs(np.diff(depth, axis=1, prepend=depth[:, :1]))
    shaded = colors * (1.0 - 0.6 * np.clip(slope / _SHADE_M, 0.0, 1.0))[..., None]
    shaded[depth <= 0.0] = _EMPTY
    return shaded.astype(np.uint8)


def compose(
    images: Mapping[str, NDArray[np.uint8]], views: NDArray[np.float32], view_names: Sequence[str] | None = None
) -> NDArray[np.uint8]:
    """One picture of camera images side by side, with the views below.

    Args:
        images: camera name to (H, W, 3) uint8 RGB, of one size.
        views: (224, 1120, 4) float32, tiled; other sets of views are scaled to that width.
        view_names: captions; by default those of the paper's five views.

    Returns:
        (H', 1120, 3) uint8 RGB; H' is even, and the same for the same number and size of images.
    """
    row, names = color_views(views), list(view_names or ())
    if views.shape[1] != WIDTH:
        size = (WIDTH, 2 * round(views.shape[0] * WIDTH / views.shape[1] / 2))
        row = np.ascontiguousarray(cv2.resize(row, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    elif not names:
        names = [view.name for view in PAPER_VIEWS]
    for i, name in enumerate(names):
        _caption(row, f"view {name}", i * WIDTH * views.shape[0] // views.shape[1])
    if not images:
        return row
    width = WIDTH // len(images)
    tiles = []
    for name, image in images.items():
        height = 2 * round(image.shape[0] * width / image.shape[1] / 2)
        tile = np.ascontiguousarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        _caption(tile, f"camera {name}", 0)
        tiles.append(tile)
    top = np.hstack(tiles)
    padded = np.zeros((top.shape[0], WIDTH, 3), np.uint8)
    padded[:, : top.shape[1]] = top
    return np.vstack([padded, row])


def _caption(image: NDArray[np.uint8], text: str, x: int) -> None:
    for color, shift in (((0, 0, 0), 1), ((255, 255, 255), 0)):  # a shadow keeps it readable on any ground
        cv2.putText(image, text, (x + 6 + shift, 16 + shift), cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, 1, cv2.LINE_AA)
