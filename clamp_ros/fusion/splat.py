"""The kernels behind `fusion.views`: project, keep the nearest per pixel, widen to footprints; compiled with numba.

A point covers the square of pixels within r of its own. Rather than test (2r + 1)^2 pixels per point, points of equal r
share a depth buffer, a `plane`, one cell each; the minimum over a (2r + 1)^2 window of that plane then is the very same
image. A square window's minimum is that of its columns, then of its rows, at a cost that does not grow with the points.
Planes have a margin as wide as the largest r, for points whose footprint alone reaches into the image.

A cell is 64 bits: the depth's float32 bits above, the point's index below. Its minimum is the nearest point, and among
equally near ones the first, whatever the order of writing. Windows compare cells as float64, which orders them as int64
would (both are positive) and takes a single vector instruction.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from clamp_ros.fusion.threads import choose_threading_layer

_EMPTY = np.inf
_CHUNK = 512  # points that are projected at a time

choose_threading_layer()
_jit = numba.njit(nogil=True, error_model="numpy")  # a check for division by zero would keep a loop from vectorising


class Optics(NamedTuple):
    """What the configuration fixes: (views, 3) f, cx, cy; nearest depth; footprint and its cap; the image's size."""

    intrinsics: NDArray[np.float64]
    near_m: float
    footprint_m: float
    cap_px: int
    size: int


class Buffers(NamedTuple):
    """The kernels' memory, of one thread each (first axis).

    Attributes:
        planes: (threads, views, cap + 1, side * side) cells. used: (threads, views, cap + 1) whether one holds points.
        xyz, cell, depth, column, nearest: scratch.
    """

    planes: NDArray[np.float64]
    used: NDArray[np.int64]
    xyz: NDArray[np.float64]
    cell: NDArray[np.int32]
    depth: NDArray[np.float32]
    column: NDArray[np.float64]
    nearest: NDArray[np.float64]


def allocate(threads: int, optics: Optics) -> Buffers:
    """Buffers for these views."""
    views = len(optics.intrinsics)
    side = optics.size + 2 * optics.cap_px
    return Buffers(
        planes=np.full((threads, views, optics.cap_px + 1, side * side), _EMPTY),
        used=np.zeros((threads, views, optics.cap_px + 1), np.int64),
        xyz=np.zeros((threads, 3, _CHUNK)),
        cell=np.zeros((threads, _CHUNK), np.int32),
        depth=np.zeros((threads, _CHUNK), np.float32),
        column=np.zeros((threads, side)),
        nearest=np.zeros((threads, optics.size)),
    )


@_jit
def _splat(t, first, last, cloud, camera_from_world, optics, b):
    """Points first..last into thread t's planes, which are emptied where they were used before."""
    planes, used, xyz = b.planes[t], b.used[t], b.xyz[t]
    for i in range(planes.shape[0]):
        for r in range(planes.shape[1]):
            if used[i, r] != 0:
                used[i, r] = 0
                plane = planes[i, r]
                for k in range(plane.shape[0]):
                    plane[k] = _EMPTY
    for start in range(first, last, _CHUNK):
        n = min(_CHUNK, last - start)
        for k in range(n):
            xyz[0, k] = cloud[start + k, 0]
            xyz[1, k] = cloud[start + k, 1]
            xyz[2, k] = cloud[start + k, 2]
        for i in range(planes.shape[0]):
            _project(n, xyz, camera_from_world[i], optics.intrinsics[i], optics, b.cell[t], b.depth[t])
            _write(start, n, b.cell[t], b.depth[t], planes[i], used[i])


@_jit
def _project(n, xyz, m, intrinsics, optics, cell, depth):
    """Each of n points' cell in the view's planes, or -1, and its depth. No branch, no lookup: LLVM vectorises it."""
    xs, ys, zs = xyz[0], xyz[1], xyz[2]
    m00, m01, m02, m03 = m[0, 0], m[0, 1], m[0, 2], m[0, 3]
    m10, m11, m12, m13 = m[1, 0], m[1, 1], m[1, 2], m[1, 3]
    m20, m21, m22, m23 = m[2, 0], m[2, 1], m[2, 2], m[2, 3]
    f, near, footprint, cap = intrinsics[0], optics.near_m, optics.footprint_m, np.float64(optics.cap_px)
    cu, cv = intrinsics[1] + cap + 0.5, intrinsics[2] + cap + 0.5
    side = np.float64(optics.size) + 2.0 * cap
    columns = np.int32(side)
    for k in range(n):
        x, y, z = xs[k], ys[k], zs[k]
        distance = m20 * x + m21 * y + m22 * z + m23
        inverse = 1.0 / distance
        u = f * (m00 * x + m01 * y + m02 * z + m03) * inverse + cu
        v = f * (m10 * x + m11 * y + m12 * z + m13) * inverse + cv
        seen = (distance >= near) & (u >= 0.0) & (u < side) & (v >= 0.0) & (v < side)
        seen &= (x != 0.0) | (y != 0.0) | (z != 0.0)  # padding
        wide = f * footprint * inverse + 0.5
        # numba widens int32; casting every step back lets LLVM multiply eight at a time
        r = np.int32(wide if wide < cap else cap)
        line = np.int32(np.int32(r * columns) + np.int32(v))
        at = np.int32(np.int32(line * columns) + np.int32(u))
        cell[k] = at if seen else np.int32(-1)
        depth[k] = distance


@_jit
def _write(start, n, cell, depth, planes, used):
    """Into each cell the nearest of what it holds and of the n points, whose indices begin at `start`."""
    flat = planes.reshape(-1).view(np.int64)
    bits = depth.view(np.int32)
    area = planes.shape[1]
    for r in range(planes.shape[0]):
        some = 0
        for k in range(n):
            some |= (cell[k] >= r * area) & (cell[k] < (r + 1) * area)
        used[r] |= some
    for k in range(n):
        at = cell[k]
        if at >= 0:
            key = np.int64(bits[k]) << 32 | (start + k)
            if key < flat[at]:
                flat[at] = key


@_jit
def _resolve(t, first, last, threads, i, cloud, optics, b, out):
    """Rows first..last of view i, from all threads' planes, to its tile of out."""
    size, cap = optics.size, optics.cap_px
    side = size + 2 * cap
    column, nearest = b.column[t], b.nearest[t]
    index, depth = nearest.view(np.int32), nearest.view(np.float32)  # a cell's halves, little-endian
    for y in range(first, last):
        for x in range(size):
            nearest[x] = _EMPTY
        for r in range(cap + 1):
            some = False
            for x in range(side):
                column[x] = _EMPTY
            for other in range(threads):
                if b.used[other, i, r] == 0:
                    continue
                some = True
                for v in range(y + cap - r, y + cap + r + 1):
                    line = b.planes[other, i, r, v * side : (v + 1) * side]
                    for x in range(side):
                        column[x] = line[x] if line[x] < column[x] else column[x]
            if not some:
                continue
            for k in range(cap - r, cap + r + 1):
                for x in range(size):
                    nearest[x] = column[x + k] if column[x + k] < nearest[x] else nearest[x]
        for x in range(size):
            pixel = out[y, i * size + x]
            if nearest[x] == _EMPTY:
                pixel[0] = pixel[1] = pixel[2] = pixel[3] = 0.0
            else:
                point = cloud[index[2 * x]]
                pixel[0] = depth[2 * x + 1]
                pixel[1] = point[0]
                pixel[2] = point[1]
                pixel[3] = point[2]


def _render(threads, cloud, camera_from_world, optics, b, out):
    """All views.

    cloud: (N, 3) float32. camera_from_world: (views, 3, 4) float64. out: (size, views * size, 4) float32.
    """
    n = cloud.shape[0]
    size = optics.size
    for t in numba.prange(threads):
        _splat(t, n * t // threads, n * (t + 1) // threads, cloud, camera_from_world, optics, b)
    for t in numba.prange(threads):
        for i in range(camera_from_world.shape[0]):
            _resolve(t, size * t // threads, size * (t + 1) // threads, threads, i, cloud, optics, b, out)


# Compiled twice from one source, as in fusion.voxels.
render_parallel = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)(_render)
_render_plain = _jit(_render)


@numba.njit(cache=True, nogil=True)
def render_serial(*args):
    """`_render` in the calling thread."""
    _render_plain(*args)
