"""What `clamp_ros.fusion` computes, written plainly in float64 NumPy: slow, and independent of its kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.views import TILED_SHAPE, VIEW_SIZE, FusionConfig
from clamp_ros.fusion.cloud import DepthImage
from clamp_ros.geometry.transforms import apply, invert

QUANTA = 1024


def world_points(frames: Sequence[DepthImage], config: FusionConfig) -> NDArray[np.float64]:
    """(N, 3) of every valid pixel."""
    points = [np.empty((0, 3))]
    for frame in frames:
        depth = frame.depth_mm / 1000.0
        v, u = np.nonzero((depth >= config.depth_min_m) & (depth <= config.depth_max_m) & (depth > 0.0))
        in_camera = frame.pinhole.deproject(np.stack([u, v], axis=-1), depth[v, u])
        points.append(apply(frame.world_from_camera, in_camera))
    return np.concatenate(points)


def voxel_centroids(
    points: NDArray[np.float64], config: FusionConfig, quantised: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Voxels (N, 3), as indices on the world's grid, and their centroids (N, 3) in metres, sorted by voxel.

    quantised: points are first rounded to 1/1024 voxel, as the kernels do; else taken as they are.
    """
    low, high = np.array(config.crop_min_m), np.array(config.crop_max_m)
    if quantised:
        quantum = config.voxel_m / QUANTA
        whole = np.floor(points / quantum + 0.5)
        inside = np.all((whole >= np.floor(low / quantum + 0.5)) & (whole <= np.floor(high / quantum + 0.5)), axis=1)
        whole = whole[inside]
        index, at = np.floor(whole / QUANTA), whole
    else:
        quantum = 1.0
        at = points[np.all((points >= low) & (points <= high), axis=1)]
        index = np.floor(at / config.voxel_m)
    spread = 1 << 20  # more voxels than any axis has, so that one number stands for a voxel
    one = (index.astype(np.int64) + spread // 2) @ np.array([spread**2, spread, 1])
    numbers, inverse, counts = np.unique(one, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(inverse, at[:, a], len(numbers)) for a in range(3)], axis=1)
    voxels = np.stack([numbers // spread**2, numbers // spread % spread, numbers % spread], axis=1) - spread // 2
    return voxels, sums / counts[:, None] * quantum


def hashes(voxels: NDArray[np.int64], config: FusionConfig) -> NDArray[np.uint32]:
    """(N,) the seeded hash that decides which voxels stay; the constants are those of lowbias32."""
    quantum = config.voxel_m / QUANTA
    low = np.floor(np.floor(np.array(config.crop_min_m) / quantum + 0.5) / QUANTA).astype(np.int64)
    high = np.floor(np.floor(np.array(config.crop_max_m) / quantum + 0.5) / QUANTA).astype(np.int64)
    nx, ny, _ = high - low + 1
    x, y, z = (voxels - low).T
    before, after = np.random.SeedSequence(config.seed).generate_state(2, np.uint32)
    h = ((z * ny + y) * nx + x).astype(np.uint32) ^ before
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16)) ^ after


def cloud(frames: Sequence[DepthImage], config: FusionConfig) -> NDArray[np.float32]:
    """(N, 3) centroids, capped; sorted by voxel (x, then y, then z)."""
    voxels, centroids = voxel_centroids(world_points(frames, config), config)
    if len(voxels) > config.max_points:
        stay = np.sort(np.argsort(hashes(voxels, config))[: config.max_points])
        centroids = centroids[stay]
    return centroids.astype(np.float32)


def render(
    points: NDArray[np.float32], world_from_views: NDArray[np.float64], config: FusionConfig
) -> NDArray[np.float32]:
    """(224, 1120, 4): every point drawn as a square of pixels, from the farthest to the nearest."""
    out = np.zeros(TILED_SHAPE, dtype=np.float32)
    for i, (view, pose) in enumerate(zip(config.views, world_from_views, strict=True)):
        pinhole = view.pinhole()
        p = apply(invert(pose), points.astype(np.float64))
        keep = np.flatnonzero((p[:, 2] >= config.near_m) & np.any(points != 0.0, axis=1))
        uv, z = pinhole.project(p[keep])
        u, v = np.floor(uv + 0.5).T
        radius = np.minimum(np.floor(pinhole.fx * config.footprint_m / z + 0.5), config.footprint_max_px)
        order = np.lexsort((-keep, -z.astype(np.float32)))  # the nearest last; of equals, the first point last
        order = order[(np.abs(u) < 1e6)[order] & (np.abs(v) < 1e6)[order]]
        tile = out[:, i * VIEW_SIZE : (i + 1) * VIEW_SIZE]
        value = np.column_stack([z, points[keep]]).astype(np.float32)
        rank = np.full((VIEW_SIZE, VIEW_SIZE), -1, dtype=np.int64)
        positions = np.arange(len(order))
        for dv in range(-config.footprint_max_px, config.footprint_max_px + 1):
            for du in range(-config.footprint_max_px, config.footprint_max_px + 1):
                a, b = u[order] + du, v[order] + dv
                hit = (radius[order] >= max(abs(du), abs(dv))) & (a >= 0) & (a < VIEW_SIZE) & (b >= 0) & (b < VIEW_SIZE)
                np.maximum.at(rank, (b[hit].astype(int), a[hit].astype(int)), positions[hit])
        seen = rank >= 0
        tile[seen] = value[order[rank[seen]]]
    return out
