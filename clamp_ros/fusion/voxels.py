"""The kernels behind `fusion.cloud`: deproject, crop, voxelise, subsample; compiled with numba.

Coordinates are fixed-point integers, `quanta`, of 1/1024 voxel on a grid that starts at the world's origin. Sums of
integers do not depend on their order, so that neither the cameras' order nor the number of threads changes a bit.

The crop's voxels are grouped in bricks of 8x8x8. A brick that holds points gets a bitmap of its 512 voxels: 64 bytes,
one cache line. A voxel's place in the cloud is the number of bits set before its own, in the order (brick, z, y, x).

1. `_insert`: every thread deprojects its rows, keeps its points in 64 bits each (slot of the brick, voxel, 3 x 10 bits
   of offset in the voxel) and marks their voxels in bitmaps of its own: seen, and seen more than once.
2. `_index`, `_merge`: the threads' bitmaps become one.
3. `_hash`, `_select`, `_drop`: if there are too many voxels, those with the smallest hashes stay.
4. `_emit`, `_average`: voxels with one point are written at once; the others add their points up, then divide.
5. `_clear`: what was touched, and no more, is zeroed for the next call.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from clamp_ros.fusion.memory import BRICK_BITS, CHUNK, HIST_BINS, SUBVOXEL_BITS, WORDS
from clamp_ros.fusion.threads import choose_threading_layer

_VOXEL_SHIFT = 30  # of a point: 30 bits of offset, 6 of bit, 3 of word, the rest is the brick's slot
_WORD_SHIFT = 36
_SLOT_SHIFT = 39
_BLOCK_ROWS = 8  # rows that a thread takes at a time: neighbouring rows meet the same bricks

choose_threading_layer()
_jit = numba.njit(nogil=True, error_model="numpy")  # a check for division by zero would keep a loop from vectorising


def _popcount_code(typingctx, word):
    """Number of bits set in an int64."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return numba.int64(numba.int64), codegen


def _lowest_bit_code(typingctx, word):
    """Index of the lowest bit set in an int64 that is not 0."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return numba.int64(numba.int64), codegen


_popcount: Any = intrinsic(_popcount_code)
_lowest_bit: Any = intrinsic(_lowest_bit_code)


@_jit
def _insert(t, threads, images, rays, grid, b):
    """Thread t's rows of all images. Arguments as `_fuse`'s."""
    line_rays = b.line_rays[t]
    n = np.int64(0)
    turn = t  # blocks of rows until this thread's next one
    for i in range(images.shape[0]):
        first, height, width = images[i]
        depth = b.depth[first : first + height * width].reshape(height, width)
        for u in range(width):
            for axis in range(3):
                line_rays[axis, u] = rays[i, 0, axis] * u
        for block in range(turn * _BLOCK_ROWS, height, threads * _BLOCK_ROWS):
            for v in range(block, min(block + _BLOCK_ROWS, height)):
                _deproject(depth[v], v, rays[i], line_rays, grid, b.line[t])
                n = _mark(t, width, n, b)
        turn = (turn - (height + _BLOCK_ROWS - 1) // _BLOCK_ROWS) % threads
    b.counts[t] = n


@_jit
def _deproject(depth, v, ray, line_rays, grid, line):
    """One row: each pixel's brick (-1 outside the crop), voxel, offsets. No branch, no lookup: LLVM vectorises it."""
    bricks, voxels, offsets = line[0], line[1], line[2]
    rays_x, rays_y, rays_z = line_rays[0], line_rays[1], line_rays[2]
    row_x = ray[1, 0] * v + ray[2, 0]
    row_y = ray[1, 1] * v + ray[2, 1]
    row_z = ray[1, 2] * v + ray[2, 2]
    camera_x, camera_y, camera_z = ray[3, 0] + 0.5, ray[3, 1] + 0.5, ray[3, 2] + 0.5
    low_x, low_y, low_z = grid.low[0], grid.low[1], grid.low[2]
    high_x, high_y, high_z = grid.high[0], grid.high[1], grid.high[2]
    nearest, farthest = grid.depth_min, grid.depth_max
    nx, ny = np.int32(grid.bricks[0]), np.int32(grid.bricks[1])
    for u in range(depth.shape[0]):
        d = np.float64(depth[u])
        x = d * (rays_x[u] + row_x) + camera_x
        y = d * (rays_y[u] + row_y) + camera_y
        z = d * (rays_z[u] + row_z) + camera_z
        inside = (d >= nearest) & (d <= farthest) & (x >= low_x) & (x < high_x)
        inside &= (y >= low_y) & (y < high_y) & (z >= low_z) & (z < high_z)
        # numba widens int32; casting every step back lets LLVM multiply eight at a time
        ix, iy, iz = np.int32(x), np.int32(y), np.int32(z)
        plane = np.int32(np.int32(np.int32(iz >> 13) * ny) + np.int32(iy >> 13))
        brick = np.int32(np.int32(plane * nx) + np.int32(ix >> 13))
        bricks[u] = brick if inside else np.int32(-1)
        voxels[u] = ((iz >> 10) & 7) << 6 | ((iy >> 10) & 7) << 3 | ((ix >> 10) & 7)
        offsets[u] = (iz & 1023) << 20 | (iy & 1023) << 10 | (ix & 1023)


@_jit
def _mark(t, width, n, b):
    """Keeps the row's points behind the n held before, and marks their voxels; gives the new n."""
    bricks, voxels, offsets = b.line[t, 0], b.line[t, 1], b.line[t, 2]
    slot_of, seen, multi, points = b.slot_of[t], b.seen[t], b.multi[t], b.points[t]
    one = np.int64(1)
    for u in range(width):
        brick = bricks[u]
        if brick < 0:
            continue
        slot = np.int64(slot_of[brick])
        if slot == 0:  # none yet: slots count from 1
            b.slots[t] += 1
            slot = b.slots[t]
            slot_of[brick] = slot
            b.brick_at[t, slot] = brick
            b.occupied[t, brick >> 6] |= one << (brick & 63)
        voxel = np.int64(voxels[u])
        w = slot * WORDS + (voxel >> 6)
        bit = one << (voxel & 63)
        before = seen[w]
        seen[w] = before | bit
        if before & bit != 0:
            multi[w] |= bit
        points[n] = slot << _SLOT_SHIFT | voxel << _VOXEL_SHIFT | np.int64(offsets[u])
        n += 1
    return n


@_jit
def _index(threads, b):
    """Numbers the bricks that any thread has touched, in the order of their ids; gives how many."""
    count = 0
    for w in range(b.occupied_all.shape[0]):
        word = np.int64(0)
        for t in range(threads):
            word |= b.occupied[t, w]
        b.occupied_all[w] = word
        b.base[w] = count
        while word != 0:
            b.brick_ids[count] = w * 64 + _lowest_bit(word)
            word &= word - 1
            count += 1
    for t in range(threads):
        for g in range(count):
            b.slot_at[t, g] = 0
        for slot in range(1, b.slots[t] + 1):
            brick = np.int64(b.brick_at[t, slot])
            below = b.occupied_all[brick >> 6] & ((np.int64(1) << (brick & 63)) - 1)
            g = b.base[brick >> 6] + _popcount(below)
            b.number_of[t, slot] = g
            b.slot_at[t, g] = slot
    return count


@_jit
def _merge(first, last, threads, grid, b):
    """Bricks first..last: their first voxel in the grid, and the union of the threads' bitmaps."""
    nx, ny = grid.bricks[0], grid.bricks[1]
    for g in range(first, last):
        brick = np.int64(b.brick_ids[g])
        b.corners[g, 0] = brick % nx << BRICK_BITS
        b.corners[g, 1] = brick // nx % ny << BRICK_BITS
        b.corners[g, 2] = brick // (nx * ny) << BRICK_BITS
        for w in range(WORDS):
            some = np.int64(0)
            more = np.int64(0)
            for t in range(threads):
                slot = np.int64(b.slot_at[t, g])
                if slot != 0:
                    word = b.seen[t, slot * WORDS + w]
                    more |= b.multi[t, slot * WORDS + w] | (some & word)
                    some |= word
            b.voxels[g * WORDS + w] = some
            b.several[g * WORDS + w] = more


@_jit
def _rank(words, bitmap, ranks):
    """Bits set before each word; gives how many in all."""
    total = 0
    for w in range(words):
        ranks[w] = total
        total += _popcount(bitmap[w])
    return total


@_jit
def _hash(t, first, last, grid, b):
    """Bricks first..last: a 32-bit hash of every voxel, and a histogram of the hashes' upper 12 bits.

    The hash is a bijection of the voxel's row-major index in the grid (C. Wellons' lowbias32 between two keys), so that
    no two voxels share one.
    """
    hist = b.hists[t]
    for i in range(HIST_BINS):
        hist[i] = 0
    nx, ny = grid.voxels[0], grid.voxels[1]
    before, after = grid.seeds[0], grid.seeds[1]
    for g in range(first, last):
        x0, y0, z0 = np.int64(b.corners[g, 0]), np.int64(b.corners[g, 1]), np.int64(b.corners[g, 2])
        for w in range(WORDS):
            word = b.voxels[g * WORDS + w]
            at = b.ranks[g * WORDS + w]
            corner = ((z0 + w) * ny + y0) * nx + x0
            while word != 0:
                bit = _lowest_bit(word)
                word &= word - 1
                h = np.uint32(corner + (bit >> 3) * nx + (bit & 7)) ^ before
                h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
                h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
                h = np.uint32(h ^ (h >> np.uint32(16)) ^ after)
                b.hashes[at] = h
                hist[h >> np.uint32(20)] += 1
                at += 1


@_jit
def _select(count, keep, b):
    """The keep-th smallest of `count` different hashes, by histograms of 12, 12 and 8 bits."""
    hashes, hist = b.hashes, b.hist
    for i in range(HIST_BINS):
        hist[i] = 0
        for t in range(b.hists.shape[0]):
            hist[i] += b.hists[t, i]
    upper = 0
    while keep > hist[upper]:
        keep -= hist[upper]
        upper += 1
    for shift, bits in ((8, 12), (0, 8)):
        for i in range(HIST_BINS):
            hist[i] = 0
        for i in range(count):
            if np.int64(hashes[i]) >> (shift + bits) == upper:
                hist[(np.int64(hashes[i]) >> shift) & ((1 << bits) - 1)] += 1
        lower = 0
        while keep > hist[lower]:
            keep -= hist[lower]
            lower += 1
        upper = upper << bits | lower
    return upper


@_jit
def _drop(first, last, threshold, b):
    """Words first..last: clears the voxels whose hash is above the threshold."""
    for w in range(first, last):
        word = b.voxels[w]
        kept = word
        at = b.ranks[w]
        while word != 0:
            low = word & -word
            if np.int64(b.hashes[at]) > threshold:
                kept ^= low
            word ^= low
            at += 1
        b.voxels[w] = kept
        b.several[w] &= kept


@_jit
def _emit(t, grid, b, out):
    """Thread t's points: those alone in their voxel are written, the others added up."""
    points, number_of, places, sums = b.points[t], b.number_of[t], b.places[t], b.sums[t]
    x0, y0, z0 = grid.origin[0], grid.origin[1], grid.origin[2]
    quantum = grid.quantum
    one = np.int64(1)
    count = b.counts[t]
    for start in range(0, count, CHUNK):
        # Sorted without a branch, which would be mispredicted: first those whose voxel was kept, then these in two.
        kept = alone = together = 0
        for i in range(start, min(start + CHUNK, count)):
            point = points[i]
            w = np.int64(number_of[point >> _SLOT_SHIFT]) * WORDS + ((point >> _WORD_SHIFT) & 7)
            places[4, kept] = i
            places[5, kept] = w
            kept += (b.voxels[w] >> ((point >> _VOXEL_SHIFT) & 63)) & 1
        for k in range(kept):
            i, w = places[4, k], places[5, k]
            bit = one << ((points[i] >> _VOXEL_SHIFT) & 63)
            word, more = b.voxels[w], b.several[w]
            several = 1 if more & bit != 0 else 0
            places[0, alone] = b.ranks[w] + _popcount(word & (bit - 1))
            places[1, alone] = i
            alone += 1 - several
            places[2, together] = b.multi_ranks[w] + _popcount(more & (bit - 1))
            places[3, together] = i
            together += several
        for k in range(alone):
            point = points[places[1, k]]
            g = number_of[point >> _SLOT_SHIFT]
            voxel = point >> _VOXEL_SHIFT
            x = ((np.int64(b.corners[g, 0]) + (voxel & 7)) << SUBVOXEL_BITS) + (point & 1023)
            y = ((np.int64(b.corners[g, 1]) + ((voxel >> 3) & 7)) << SUBVOXEL_BITS) + ((point >> 10) & 1023)
            z = ((np.int64(b.corners[g, 2]) + ((voxel >> 6) & 7)) << SUBVOXEL_BITS) + ((point >> 20) & 1023)
            at = places[0, k]
            out[at, 0] = (x0 + x) * quantum
            out[at, 1] = (y0 + y) * quantum
            out[at, 2] = (z0 + z) * quantum
        for k in range(together):
            at = places[2, k]
            point = points[places[3, k]]
            sums[at, 0] += point & 1023
            sums[at, 1] += (point >> 10) & 1023
            sums[at, 2] += (point >> 20) & 1023
            sums[at, 3] += 1


@_jit
def _average(first, last, threads, grid, b, out):
    """Bricks first..last: the centroids of the voxels with several points; their sums are zeroed."""
    for g in range(first, last):
        x0 = grid.origin[0] + (np.int64(b.corners[g, 0]) << SUBVOXEL_BITS)
        y0 = grid.origin[1] + (np.int64(b.corners[g, 1]) << SUBVOXEL_BITS)
        z0 = grid.origin[2] + (np.int64(b.corners[g, 2]) << SUBVOXEL_BITS)
        for w in range(g * WORDS, (g + 1) * WORDS):
            word = b.several[w]
            row = b.multi_ranks[w]
            while word != 0:
                bit = _lowest_bit(word)
                x = y = z = n = np.int64(0)
                for t in range(threads):
                    x += np.int64(b.sums[t, row, 0])
                    y += np.int64(b.sums[t, row, 1])
                    z += np.int64(b.sums[t, row, 2])
                    n += np.int64(b.sums[t, row, 3])
                    for a in range(4):
                        b.sums[t, row, a] = 0
                at = b.ranks[w] + _popcount(b.voxels[w] & ((word & -word) - 1))
                out[at, 0] = (x + n * (x0 + ((bit & 7) << SUBVOXEL_BITS))) / n * grid.quantum
                out[at, 1] = (y + n * (y0 + ((bit >> 3) << SUBVOXEL_BITS))) / n * grid.quantum
                out[at, 2] = (z + n * (z0 + ((w - g * WORDS) << SUBVOXEL_BITS))) / n * grid.quantum
                word &= word - 1
                row += 1


@_jit
def _clear(t, b):
    """Thread t's slots, back to none."""
    for slot in range(1, b.slots[t] + 1):
        brick = b.brick_at[t, slot]
        b.slot_of[t, brick] = 0
        b.occupied[t, brick >> 6] = 0
        for w in range(slot * WORDS, (slot + 1) * WORDS):
            b.seen[t, w] = 0
            b.multi[t, w] = 0
    b.slots[t] = 0


def _fuse(threads, images, rays, grid, b, out):
    """Steps 1 to 5; gives the number of points written to out.

    images: (images, 3) int64 first pixel in b.depth, height, width.
    rays: (images, 4, 3) float64 quanta per mm of depth along u, v and 1, then the camera's position in quanta; axes of
        the world, from grid.origin.
    out: (max_points, 3) float32.
    """
    # The loops only call: numba loses what a parallel loop itself writes to an array inside a tuple.
    for t in numba.prange(threads):
        _insert(t, threads, images, rays, grid, b)
    bricks = _index(threads, b)
    for t in numba.prange(threads):
        _merge(bricks * t // threads, bricks * (t + 1) // threads, threads, grid, b)
    words = bricks * WORDS
    total = _rank(words, b.voxels, b.ranks)
    if total > grid.max_points:
        for t in numba.prange(threads):
            _hash(t, bricks * t // threads, bricks * (t + 1) // threads, grid, b)
        threshold = _select(total, grid.max_points, b)
        for t in numba.prange(threads):
            _drop(words * t // threads, words * (t + 1) // threads, threshold, b)
        total = _rank(words, b.voxels, b.ranks)
    _rank(words, b.several, b.multi_ranks)
    for t in numba.prange(threads):
        _emit(t, grid, b, out)
    for t in numba.prange(threads):
        _average(bricks * t // threads, bricks * (t + 1) // threads, threads, grid, b, out)
        _clear(t, b)
    return total


# Compiled twice from one source. The serial form starts no thread pool, so that a process which uses it may fork; it is
# cached through a wrapper, because numba's cache does not tell a function's parallel form from its serial one.
fuse_parallel = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)(_fuse)
_fuse_plain = _jit(_fuse)


@numba.njit(cache=True, nogil=True)
def fuse_serial(*args):
    """`_fuse` in the calling thread."""
    return _fuse_plain(*args)
