"""How well footprints close a surface: rendered views against the ray-cast scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from fusion_scene import Array, Shape, ray_cast
from numpy.typing import NDArray

from clamp_ros.contract.views import VIEW_SIZE, FusionConfig
from clamp_ros.fusion.cloud import DepthFrame
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.geometry.transforms import apply, invert

TOLERANCE_M = 0.015
"""Depths that differ by less are the same surface."""


class Quality(NamedTuple):
    """Shares of one view.

    Attributes:
        holes: of the pixels whose surface a camera has seen: nothing is rendered.
        leaks: of the same: something more than TOLERANCE_M behind the surface is rendered.
        fattening: pixels that show something more than TOLERANCE_M before all surfaces within them, relative to the
            objects' pixels. (A pixel that an object only touches may show it: a dense cloud drawn without footprints
            does so, too.)
    """

    holes: float
    leaks: float
    fattening: float


def quality(
    views: NDArray[np.float32],
    i: int,
    world_from_view: Array,
    shapes: Sequence[Shape],
    frames: Sequence[DepthFrame],
    config: FusionConfig,
) -> Quality:
    """Of view i; frames are the (noise-free) images the views were made from."""
    pinhole = config.views[i].pinhole()
    fine = Pinhole(3 * VIEW_SIZE, 3 * VIEW_SIZE, 3 * pinhole.fx, 3 * pinhole.fy, 3 * pinhole.cx + 1, 3 * pinhole.cy + 1)
    within_pixel = ray_cast(list(shapes), fine, world_from_view).reshape(VIEW_SIZE, 3, VIEW_SIZE, 3)
    truth, nearest = within_pixel[:, 1, :, 1], within_pixel.min(axis=(1, 3))
    v, u = np.mgrid[:VIEW_SIZE, :VIEW_SIZE].astype(np.float64)
    surface = apply(world_from_view, pinhole.deproject(np.stack([u, v], axis=-1), np.where(truth < 10, truth, 0.0)))
    inside = np.isfinite(truth) & (truth >= config.near_m)
    inside &= np.all((surface >= config.crop_min_m) & (surface <= config.crop_max_m), axis=-1)
    observed = np.zeros_like(inside)
    for frame in frames:
        pixels, depth = frame.pinhole.project(apply(invert(frame.world_from_camera), surface))
        pixels = np.rint(np.nan_to_num(pixels, nan=-1.0)).astype(int)
        within = np.all((pixels >= 0) & (pixels < (frame.pinhole.width, frame.pinhole.height)), axis=-1)
        column, row = np.where(within[..., None], pixels, 0).reshape(-1, 2).T
        measured = frame.depth_mm[row, column].reshape(depth.shape) / 1e3
        observed |= inside & within & (np.abs(measured - depth) < 0.004)
    rendered = views[:, i * VIEW_SIZE : (i + 1) * VIEW_SIZE, 0].astype(np.float64)
    shown = rendered > 0.0
    objects = inside & (surface[..., 2] > 0.005)
    return Quality(
        holes=float((observed & ~shown).sum() / observed.sum()),
        leaks=float((observed & shown & (rendered > truth + TOLERANCE_M)).sum() / observed.sum()),
        fattening=float((shown & (rendered < nearest - TOLERANCE_M)).sum() / objects.sum()),
    )
