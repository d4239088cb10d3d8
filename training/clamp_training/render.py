"""Depth images of a whole batch -> tiled views, in torch: what `clamp_ros.fusion` computes, on the device that trains.

The loader hands over depth and poses as they lie in the store, a ninth of the views' bytes; the model's step renders
them. Every stage does the same arithmetic as the kernels of `clamp_ros.fusion`, in the same precision and order: points
are rounded to integers of 1/1024 voxel, sums of integers do not depend on their order, and a pixel takes the minimum of
64-bit keys of depth and index (`scatter_reduce`, amin). So the result is the same on every run, and on a CPU the very
same as the robot's. A device that rounds a product and a sum at once (a fused multiply-add) may put a point that lies
within rounding of a border on its other side.

1. Deproject every pixel in float64, round it, keep it if it lies in the crop.
2. Sort the points by (sample, brick, voxel), the order of `fusion.voxels`; average those of a voxel.
3. Keep at most max_points voxels of each sample, those with the smallest seeded hashes.
4. Project into each view; points of equal footprint share a plane of cells. A square window of radius r is r windows of
   radius 1, so planes are merged from the widest down, each time widened by one pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.interfaces import gripper_frame
from clamp_ros.contract.views import FusionConfig
from clamp_ros.fusion.cloud import DepthImage, frame_rays, new_grid
from clamp_ros.fusion.memory import BRICK_BITS, SUBVOXEL_BITS, Grid
from clamp_ros.fusion.views import world_from_views
from clamp_ros.geometry.transforms import invert

_SAMPLE_SHIFT = 40  # of a voxel's key: 9 bits of place in its brick, 31 of the brick's number, the rest is the sample
_EMPTY = torch.iinfo(torch.int64).max
_HALF = 0xFFFFFFFF
_PIXELS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 24}
"""Of the depth images: they take 100 bytes each while they are fused. Few stay in a CPU's caches."""


@dataclass(frozen=True, eq=False)
class DepthBatch:
    """What the cameras saw in each sample of a batch, and from where it is to be rendered.

    Attributes:
        depth: (B, C, H, W) uint16 millimetres along the optical axis; 0 is invalid, also where an image is smaller.
        rays: (B, C, 4, 3) float64, of `fusion.cloud.frame_rays`.
        camera_from_world: (B, views, 3, 4) float64, of the virtual views.
        config: crop, voxel, cap, views.
        as_cloud: whether the cloud is asked for in place of the views.
    """

    depth: Tensor
    rays: Tensor
    camera_from_world: Tensor
    config: FusionConfig
    as_cloud: bool = False


def depth_batch(
    frames: Sequence[Sequence[DepthImage]],
    world_from_grippers: Sequence[Mapping[str, NDArray[np.float64]]],
    config: FusionConfig,
    as_cloud: bool = False,
) -> DepthBatch:
    """A batch of observations: as many depth images each, and the grippers' (4, 4) poses by arm.

    Raises:
        ContractError: an image does not fit its intrinsics, a gripper is missing, a pose is not rigid, or the samples
            have different numbers of images.
    """
    counts = {len(images) for images in frames}
    if len(counts) != 1:
        raise ContractError(f"the batch's samples have {sorted(counts)} depth images, expected equally many of each")
    grid = new_grid(config)
    shapes = [image.depth_mm.shape for images in frames for image in images]
    height, width = max((h for h, _ in shapes), default=0), max((w for _, w in shapes), default=0)
    depth = np.zeros((len(frames), counts.pop(), height, width), np.uint16)
    for sample, images in zip(depth, frames, strict=True):
        for out, image in zip(sample, images, strict=True):
            h, w = image.depth_mm.shape
            out[:h, :w] = image.depth_mm
    poses = [world_from_views(config, {gripper_frame(a): p for a, p in arms.items()}) for arms in world_from_grippers]
    return DepthBatch(
        torch.from_numpy(depth),
        torch.from_numpy(np.stack([frame_rays(images, config, grid) for images in frames])),
        torch.from_numpy(np.stack([[invert(pose)[:3] for pose in views] for views in poses])),
        config,
        as_cloud,
    )


@torch.no_grad()
def rendered(scene: Tensor | DepthBatch) -> Tensor:
    """What the image encoder reads, on the device where the batch is; a tensor is that already.

    Returns:
        (B, *config.tiled_shape) float32: (depth, X, Y, Z) in metres, zero where nothing is seen. For `as_cloud`,
        (B, max_points, 3) float32, padded with points at the origin.
    """
    if isinstance(scene, Tensor):
        return scene
    config, grid = scene.config, new_grid(scene.config)
    pixels = max(1, scene.depth[0].numel())
    at_once = max(1, _PIXELS_AT_ONCE.get(scene.depth.device.type, 1 << 21) // pixels)
    out = []
    parts = zip(*(x.split(at_once) for x in (scene.depth, scene.rays, scene.camera_from_world)), strict=True)
    for depth, rays, camera_from_world in parts:
        points, sample = _centroids(depth, rays, grid)
        if scene.as_cloud:
            out.append(_padded(points, sample, len(depth), grid.max_points))
        else:
            cloud = _padded(points, sample, len(depth), None)
            tiles = [_view(i, cloud, camera_from_world[:, i], config) for i in range(len(config.views))]
            out.append(torch.cat(tiles, dim=2))
    return torch.cat(out)


def _centroids(depth: Tensor, rays: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(N, 3) float32 points of all samples, ordered by sample and place, and (N,) which sample each is of."""
    points, sample = _points(depth, rays, grid)
    brick = [c >> (SUBVOXEL_BITS + BRICK_BITS) for c in points]
    number = (brick[2] * int(grid.bricks[1]) + brick[1]) * int(grid.bricks[0]) + brick[0]
    x, y, z = ((c >> SUBVOXEL_BITS) & 7 for c in points)
    key = sample << _SAMPLE_SHIFT | number << 9 | z << 6 | y << 3 | x
    voxels, of_voxel, count = torch.unique(key, return_inverse=True, return_counts=True)
    sums = [torch.zeros_like(voxels).index_add_(0, of_voxel, c) for c in points]
    sample = voxels >> _SAMPLE_SHIFT
    each = torch.bincount(sample, minlength=len(depth))
    if len(each) and int(each.max()) > grid.max_points:
        kept = _kept(voxels, each, grid)
        sample, count, sums = sample[kept], count[kept], [s[kept] for s in sums]
    centroids = [(s + count * int(o)) / count.double() * grid.quantum for s, o in zip(sums, grid.origin, strict=True)]
    return torch.stack(centroids, dim=1).float(), sample


def _points(depth: Tensor, rays: Tensor, grid: Grid) -> tuple[list[Tensor], Tensor]:
    """x, y and z of every point in the crop, int64 quanta from the grid's corner, and the sample each is of."""
    _, cameras, height, width = depth.shape
    d = depth.flatten(0, 1).double()
    along_u, along_v, centre, position = rays.flatten(0, 1).unbind(1)  # each (images, 3)
    u, v = (torch.arange(n, device=depth.device, dtype=torch.float64) for n in (width, height))
    inside, exact = (d >= grid.depth_min) & (d <= grid.depth_max), []
    for axis, (low, high) in enumerate(zip(grid.low.tolist(), grid.high.tolist(), strict=True)):
        row = along_v[:, axis, None] * v + centre[:, axis, None]
        x = (along_u[:, axis, None] * u)[:, None, :] + row[:, :, None]
        x = x.mul_(d).add_((position[:, axis] + 0.5)[:, None, None])
        inside &= (x >= low) & (x < high)
        exact.append(x.flatten())
    at = inside.flatten().nonzero()[:, 0]
    return [x[at].long() for x in exact], at // (cameras * height * width)


def _kept(voxels: Tensor, each: Tensor, grid: Grid) -> Tensor:
    """(N,) bool: of each sample the max_points voxels with the smallest hashes, which are `fusion.voxels`'s.

    Args:
        voxels: (N,) sorted keys.
        each: (B,) how many each sample has.
        grid: size, cap and seeds.
    """
    bricks_x, bricks_y = int(grid.bricks[0]), int(grid.bricks[1])
    sample = voxels >> _SAMPLE_SHIFT
    brick = (voxels & ((1 << _SAMPLE_SHIFT) - 1)) >> 9
    x = (brick % bricks_x << BRICK_BITS) + (voxels & 7)
    y = (brick // bricks_x % bricks_y << BRICK_BITS) + (voxels >> 3 & 7)
    z = (brick // (bricks_x * bricks_y) << BRICK_BITS) + (voxels >> 6 & 7)
    h = (((z * int(grid.voxels[1]) + y) * int(grid.voxels[0]) + x) & _HALF) ^ int(grid.seeds[0])
    h = _times(h ^ (h >> 16), 0x7FEB352D)
    h = _times(h ^ (h >> 15), 0x846CA68B)
    h = h ^ (h >> 16) ^ int(grid.seeds[1])
    ranked = (sample << 32 | h).sort().values & _HALF
    last = each.cumsum(0) - each + each.clamp(max=grid.max_points) - 1
    return h <= ranked[last.clamp(min=0)][sample]


def _times(h: Tensor, factor: int) -> Tensor:
    """A product of 32-bit integers, modulo 2^32, without leaving 64 bits."""
    return ((h & 0xFFFF) * factor + ((((h >> 16) * factor) & 0xFFFF) << 16)) & _HALF


def _padded(points: Tensor, sample: Tensor, samples: int, length: int | None) -> Tensor:
    """(B, length, 3): each sample's points, then the origin; by default as long as the largest."""
    each = torch.bincount(sample, minlength=samples)
    if length is None:
        length = int(each.max())
    out = points.new_zeros(samples, length, 3)
    out[sample, torch.arange(len(points), device=points.device) - (each.cumsum(0) - each)[sample]] = points
    return out


def _view(view: int, cloud: Tensor, camera_from_world: Tensor, config: FusionConfig) -> Tensor:
    """(B, size, size, 4) of one virtual view.

    Args:
        view: its place in the tile.
        cloud: (B, N, 3) float32, metres, world frame; points at the origin are padding.
        camera_from_world: (B, 3, 4) float64.
        config: view, footprint and size.
    """
    samples, points, _ = cloud.shape
    pinhole, size, cap = config.views[view].pinhole(config.view_px), config.view_px, config.footprint_max_px
    side = size + 2 * cap
    x, y, z = cloud.double().unbind(2)
    m = camera_from_world[..., None]
    distance = m[:, 2, 0] * x + m[:, 2, 1] * y + m[:, 2, 2] * z + m[:, 2, 3]
    inverse = 1.0 / distance
    right = m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2] * z + m[:, 0, 3]
    down = m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2] * z + m[:, 1, 3]
    u = pinhole.fx * right * inverse + (pinhole.cx + cap + 0.5)
    v = pinhole.fx * down * inverse + (pinhole.cy + cap + 0.5)
    seen = (distance >= config.near_m) & (u >= 0.0) & (u < side) & (v >= 0.0) & (v < side)
    seen &= (x != 0.0) | (y != 0.0) | (z != 0.0)
    at = seen.flatten().nonzero()[:, 0]
    radius = (pinhole.fx * config.footprint_m * inverse.flatten()[at] + 0.5).clamp(max=cap).long()
    plane = radius * samples + at // max(1, points)
    cell = (plane * side + v.flatten()[at].long()) * side + u.flatten()[at].long()
    bits = distance.flatten()[at].float().view(torch.int32).long()
    planes = torch.full(((cap + 1) * samples * side * side,), _EMPTY, device=cloud.device)
    planes.scatter_reduce_(0, cell, bits << 32 | at % max(1, points), "amin")
    planes = planes.view(cap + 1, samples, side, side)
    nearest = planes[cap]
    for r in range(cap - 1, -1, -1):
        nearest = torch.minimum(_widened(nearest), planes[r, :, cap - r : side - cap + r, cap - r : side - cap + r])
    empty = nearest == _EMPTY
    depth = (nearest >> 32).int().view(torch.float32)
    index = (nearest & _HALF).masked_fill_(empty, 0).flatten(1)
    if not points:
        return cloud.new_zeros(samples, size, size, 4)
    xyz = cloud.gather(1, index[..., None].expand(-1, -1, 3)).view(samples, size, size, 3)
    return torch.cat([depth[..., None], xyz], dim=3).masked_fill_(empty[..., None], 0.0)


def _widened(cells: Tensor) -> Tensor:
    """(B, h, w) to (B, h - 2, w - 2): the minimum over each cell's square of nine."""
    rows = torch.minimum(torch.minimum(cells[:, :-2], cells[:, 1:-1]), cells[:, 2:])
    return torch.minimum(torch.minimum(rows[:, :, :-2], rows[:, :, 1:-1]), rows[:, :, 2:])
