"""Depth images -> one cropped, voxelised cloud in the world frame (paper Section III-B and Appendix C).

What is computed, exactly; `fusion.voxels` says how:

* A pixel is valid where its depth lies within depth_min_m..depth_max_m; 0 never is.
* Its point is deprojected in float64 and rounded to 1/1024 voxel on a grid that starts at the world's origin, so that a
  point on a border of voxels or crop falls on one defined side.
* The crop keeps points on its faces. A voxel's point is the centroid of the points in it.
* Of more than max_points voxels, those with the smallest seeded hash of their index stay: exactly max_points, whatever
  the order of the cameras, and nearly the same ones from frame to frame of a still scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import ConfigError, ContractError
from clamp_ros.contract.views import FusionConfig
from clamp_ros.fusion import memory, voxels
from clamp_ros.fusion.memory import BRICK_BITS, SUBVOXEL_BITS, SUBVOXELS, Grid
from clamp_ros.fusion.threads import thread_count
from clamp_ros.geometry.pinhole import Pinhole

MAX_PIXELS = 4_000_000
"""Of all images together: the sums of a voxel's offsets are 32 bits wide."""


class DepthImage(Protocol):
    """What is fused: `contract.observation.RgbdFrame`, or `DepthFrame` where there is no colour."""

    @property
    def depth_mm(self) -> NDArray[np.uint16]:
        """(H, W) uint16 millimetres along the optical axis; 0 is invalid."""
        ...

    @property
    def pinhole(self) -> Pinhole:
        """Intrinsics of the depth image."""
        ...

    @property
    def world_from_camera(self) -> NDArray[np.float64]:
        """(4, 4) pose of the optical frame."""
        ...


@dataclass(frozen=True, eq=False)
class DepthFrame:
    """A depth image without colour.

    Attributes:
        depth_mm: (H, W) uint16 millimetres along the optical axis; 0 is invalid.
        pinhole: its intrinsics.
        world_from_camera: (4, 4) float64, of the optical frame (x right, y down, z forward).
    """

    depth_mm: NDArray[np.uint16]
    pinhole: Pinhole
    world_from_camera: NDArray[np.float64]


class CloudFuser:
    """Merges depth images into one voxelised cloud.

    Holds buffers that grow to the largest input and are used again: one fuser serves one caller at a time.
    """

    def __init__(self, config: FusionConfig, threads: int | None = None) -> None:
        """Sets up the grid.

        Args:
            config: crop, voxel, cap and seed.
            threads: of the kernels; by default one per CPU. With 1, no thread pool is started, so that the process may
                fork afterwards. The result does not depend on it.

        Raises:
            ConfigError: the crop has more voxels than 32 bits can number.
        """
        self.config = config
        self.threads = thread_count(threads)
        self._grid = new_grid(config)
        self._buffers = memory.allocate(self.threads, self._grid, 0, 0)

    def fuse(self, frames: Sequence[DepthImage], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Voxel centroids of everything the cameras see inside the crop.

        Args:
            frames: any number of depth images, of any sizes; their order does not matter.
            out: (max_points, 3) float32 to write to; by default a new array.

        Returns:
            (N, 3) float32, metres, world frame; N is at most max_points and may be 0. Points are ordered by place.
            It is the beginning of `out`, if that was given.

        Raises:
            ContractError: an image does not fit its intrinsics, a pose is not a finite rigid transform, or there are
                more than MAX_PIXELS pixels.
        """
        rays = frame_rays(frames, self.config, self._grid)
        if out is None:
            out = np.empty((self.config.max_points, 3), dtype=np.float32)
        elif out.shape != (self.config.max_points, 3) or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ContractError(f"out is {out.shape} {out.dtype}, expected ({self.config.max_points}, 3) float32")
        fuse = voxels.fuse_serial if self.threads == 1 else voxels.fuse_parallel
        images = self._load([frame.depth_mm for frame in frames])
        return out[: fuse(self.threads, images, rays, self._grid, self._buffers, out)]

    def _load(self, depths: Sequence[NDArray[np.uint16]]) -> NDArray[np.int64]:
        """Copies the images to the buffers, one after another; gives (images, 3) first pixel, height, width."""
        pixels = sum(depth.size for depth in depths)
        if pixels > MAX_PIXELS:
            raise ContractError(f"{len(depths)} images have {pixels:,} pixels, expected at most {MAX_PIXELS:,} in all")
        b = self._buffers
        width = max((depth.shape[1] for depth in depths), default=0)
        if pixels > b.depth.size or width > b.line.shape[2]:
            b = memory.allocate(self.threads, self._grid, max(pixels, b.depth.size), max(width, b.line.shape[2]))
            self._buffers = b
        images = np.empty((len(depths), 3), dtype=np.int64)
        first = 0
        for image, depth in zip(images, depths, strict=True):
            image[:] = first, *depth.shape
            b.depth[first : first + depth.size].reshape(depth.shape)[...] = depth
            first += depth.size
        return images


def new_grid(config: FusionConfig) -> Grid:
    """The grid of a configuration.

    Raises:
        ConfigError: the crop has more voxels than 32 bits can number.
    """
    scale = SUBVOXELS / config.voxel_m
    low = np.floor(np.array(config.crop_min_m) * scale + 0.5).astype(np.int64)
    high = np.floor(np.array(config.crop_max_m) * scale + 0.5).astype(np.int64)
    first = low >> SUBVOXEL_BITS
    origin = first << SUBVOXEL_BITS
    size = (high >> SUBVOXEL_BITS) - first + 1
    if size.prod() > 1 << 32 or size.max() >= 1 << 21:
        raise ConfigError(
            f"the crop {config.crop_min_m}..{config.crop_max_m} has {size.prod():,} voxels of {config.voxel_m} m; "
            "at most 2^32, and 2^21 along an axis, are possible: make voxel_m larger or the crop smaller"
        )
    return Grid(
        origin=origin,
        voxels=size,
        bricks=(size + (1 << BRICK_BITS) - 1) >> BRICK_BITS,
        low=(low - origin).astype(np.float64),
        high=(high - origin + 1).astype(np.float64),
        # the smallest and the largest valid millimetre; the 1e-6 forgives that 0.001 is not a binary number
        depth_min=float(np.ceil(config.depth_min_m * 1e3 - 1e-6)),
        depth_max=float(np.floor(config.depth_max_m * 1e3 + 1e-6)),
        quantum=config.voxel_m / SUBVOXELS,
        max_points=config.max_points,
        seeds=np.random.SeedSequence(config.seed).generate_state(2, np.uint32).astype(np.uint32),
    )


def frame_rays(frames: Sequence[DepthImage], config: FusionConfig, grid: Grid) -> NDArray[np.float64]:
    """(images, 4, 3): quanta per mm of depth along u, v and 1, then the camera's position, from the grid's corner.

    Raises:
        ContractError: an image does not fit its intrinsics, or a pose is not a finite rigid transform.
    """
    scale = SUBVOXELS / config.voxel_m
    per_mm = 1e-3 * scale
    rays = np.empty((len(frames), 4, 3))
    for ray, frame in zip(rays, frames, strict=True):
        right, down, forward, position = _checked_pose(frame)[:3].T
        along_u = right / frame.pinhole.fx
        along_v = down / frame.pinhole.fy
        centre = forward - frame.pinhole.cx * along_u - frame.pinhole.cy * along_v
        ray[:] = along_u * per_mm, along_v * per_mm, centre * per_mm, position * scale - grid.origin
    return rays


def _checked_pose(frame: DepthImage) -> NDArray[np.float64]:
    shape = (frame.pinhole.height, frame.pinhole.width)
    if frame.depth_mm.shape != shape or frame.depth_mm.dtype != np.uint16:
        raise ContractError(
            f"depth is {frame.depth_mm.shape} {frame.depth_mm.dtype}, but its intrinsics are for {shape} uint16"
        )
    pose = np.asarray(frame.world_from_camera, dtype=np.float64)
    check_pose(pose, "world_from_camera")
    return pose


def check_pose(pose: NDArray[np.float64], what: str) -> None:
    """Raises ContractError unless `pose` is a finite rigid (4, 4) transform."""
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ContractError(f"{what} is {pose.tolist()}, expected a finite (4, 4) transform; check its source in TF")
    rotation = pose[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-4 or np.abs(pose[3] - (0, 0, 0, 1)).max() > 1e-9:
        raise ContractError(f"{what} is {pose.tolist()}, which is not rigid; check the calibration it comes from")
