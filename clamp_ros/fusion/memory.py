"""What the kernels of `fusion.voxels` are given: the grid, which the configuration fixes, and memory to work in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SUBVOXEL_BITS = 10
SUBVOXELS = 1 << SUBVOXEL_BITS
BRICK_BITS = 3
WORDS = 8  # of 64 voxels in a brick; the word is z, the bit 8 y + x
CHUNK = 512  # points that are sorted at a time
HIST_BINS = 4096


class Grid(NamedTuple):
    """What the configuration fixes.

    Attributes:
        origin: (3,) int64 quanta; first corner of the grid's first voxel.
        voxels: (3,) int64; the grid's size.
        bricks: (3,) int64; its size in bricks.
        low, high: (3,) float64 quanta from origin; a point is inside the crop if low <= rounded < high.
        depth_min, depth_max: valid depths, mm.
        quantum: metres.
        max_points: the cloud's size at most.
        seeds: (2,) uint32 keys of the hash.
    """

    origin: NDArray[np.int64]
    voxels: NDArray[np.int64]
    bricks: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    depth_min: float
    depth_max: float
    quantum: float
    max_points: int
    seeds: NDArray[np.uint32]


class Buffers(NamedTuple):
    """The kernels' memory; most arrays are zeroed pages that the system provides only when they are touched.

    Attributes, of one thread each (first axis):
        slots: how many slots are taken. slot_of: of a brick id, 0 for none. brick_at: the brick id of a slot.
        occupied: bitmap of brick ids. seen, multi: bitmaps of voxels by slot. points: packed. counts: how many.
        number_of: of a slot, its brick's number. slot_at: the inverse; 0: none. sums: of x, y, z offsets, and points.
        line, line_rays, places, hists: scratch.

    Attributes of all:
        depth: the images, one after another. occupied_all, base: union of occupied; bricks numbered before each word.
        brick_ids, corners: of each number, the brick's id and its first voxel. voxels, several: bitmaps by number.
        ranks, multi_ranks: bits set before each of their words. hashes: by rank. hist: scratch.
    """

    slots: NDArray[np.int64]
    slot_of: NDArray[np.int32]
    brick_at: NDArray[np.int32]
    occupied: NDArray[np.int64]
    seen: NDArray[np.int64]
    multi: NDArray[np.int64]
    points: NDArray[np.int64]
    counts: NDArray[np.int64]
    number_of: NDArray[np.int32]
    slot_at: NDArray[np.int32]
    sums: NDArray[np.uint32]
    line: NDArray[np.int32]
    line_rays: NDArray[np.float64]
    places: NDArray[np.int64]
    hists: NDArray[np.int64]
    depth: NDArray[np.uint16]
    occupied_all: NDArray[np.int64]
    base: NDArray[np.int32]
    brick_ids: NDArray[np.int32]
    corners: NDArray[np.int32]
    voxels: NDArray[np.int64]
    several: NDArray[np.int64]
    ranks: NDArray[np.int32]
    multi_ranks: NDArray[np.int32]
    hashes: NDArray[np.uint32]
    hist: NDArray[np.int64]


def allocate(threads: int, grid: Grid, pixels: int, width: int) -> Buffers:
    """Buffers for images of so many pixels in all, and up to so wide."""
    ids = int(grid.bricks.prod())
    bricks = min(ids, pixels) + 1
    return Buffers(
        slots=np.zeros(threads, np.int64),
        slot_of=np.zeros((threads, ids), np.int32),
        brick_at=np.zeros((threads, bricks), np.int32),
        occupied=np.zeros((threads, (ids + 63) // 64), np.int64),
        seen=np.zeros((threads, bricks * WORDS), np.int64),
        multi=np.zeros((threads, bricks * WORDS), np.int64),
        points=np.zeros((threads, pixels), np.int64),
        counts=np.zeros(threads, np.int64),
        number_of=np.zeros((threads, bricks), np.int32),
        slot_at=np.zeros((threads, bricks), np.int32),
        sums=np.zeros((threads, grid.max_points, 4), np.uint32),
        line=np.zeros((threads, 3, width), np.int32),
        line_rays=np.zeros((threads, 3, width), np.float64),
        places=np.zeros((threads, 6, CHUNK), np.int64),
        hists=np.zeros((threads, HIST_BINS), np.int64),
        depth=np.zeros(pixels, np.uint16),
        occupied_all=np.zeros((ids + 63) // 64, np.int64),
        base=np.zeros((ids + 63) // 64, np.int32),
        brick_ids=np.zeros(bricks, np.int32),
        corners=np.zeros((bricks, 3), np.int32),
        voxels=np.zeros(bricks * WORDS, np.int64),
        several=np.zeros(bricks * WORDS, np.int64),
        ranks=np.zeros(bricks * WORDS, np.int32),
        multi_ranks=np.zeros(bricks * WORDS, np.int32),
        hashes=np.zeros(pixels, np.uint32),
        hist=np.zeros(HIST_BINS, np.int64),
    )
