"""RVL: lossless depth compression that is quick, as compressed_depth_image_transport's `rvl`.

From Wilson, "Fast Lossless Depth Image Compression" (ISS 2017): runs of zeros and of depths in turn; a depth is its
difference from the one before, zigzag coded; every number in nibbles of three bits, of which the highest says whether
more follow; eight nibbles a 32-bit word, the first highest. The transport puts two words before it: columns and rows.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from clamp_ros.contract.errors import ContractError

_SIZE_BYTES = 8
_MAX_PIXELS = 1 << 26
_MAX_NIBBLES = 11
"""Of a 32-bit number."""


def encode(depth_mm: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """(N,) bytes of an (H, W) image: its size, then its words."""
    pixels = np.ascontiguousarray(depth_mm).reshape(-1)
    words = np.empty(pixels.size + 4, np.uint32)  # a lone depth costs 2 nibbles of runs and 6 of its own: one word
    words[0], words[1] = depth_mm.shape[1], depth_mm.shape[0]
    return words[: 2 + _encode(pixels, words[2:])].view(np.uint8)


def decode(data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The inverse of `encode`: (H, W) uint16.

    Raises:
        ContractError: the bytes are no such image.
    """
    if data.size < _SIZE_BYTES or data.size % 4:
        raise ContractError(f"RVL image of {data.size} bytes, expected whole words of 4, and at least two")
    words = np.ascontiguousarray(data).view(np.uint32)
    width, height = int(words[0]), int(words[1])
    if not 0 < width * height <= _MAX_PIXELS:
        raise ContractError(f"RVL image of {width}x{height} pixels")
    pixels = np.zeros(width * height, np.uint16)
    if not _decode(words[2:], pixels):
        raise ContractError(f"RVL image of {width}x{height} is damaged or cut off: {data.size} bytes")
    return pixels.reshape(height, width)


@njit(cache=True, nogil=True)
def _encode(pixels, words):  # pragma: no cover (compiled)
    word, nibbles, count = np.int64(0), 0, 0
    i, previous = 0, np.int64(0)
    while i < pixels.size:
        zeros = i
        while zeros < pixels.size and pixels[zeros] == 0:
            zeros += 1
        depths = zeros
        while depths < pixels.size and pixels[depths] != 0:
            depths += 1
        # -2 and -1 stand for the two lengths of the runs
        for at in range(zeros - 2, depths):
            if at == zeros - 2:
                value = np.int64(zeros - i)
            elif at == zeros - 1:
                value = np.int64(depths - zeros)
            else:
                delta = np.int64(pixels[at]) - previous
                previous = np.int64(pixels[at])
                value = (delta << 1) ^ (delta >> 63)
            while True:
                nibble = value & 7
                value >>= 3
                word = (word << 4) | nibble | (8 if value else 0)
                nibbles += 1
                if nibbles == 8:
                    words[count] = word
                    count, word, nibbles = count + 1, np.int64(0), 0
                if value == 0:
                    break
        i = depths
    if nibbles:
        words[count] = word << (4 * (8 - nibbles))
        count += 1
    return count


@njit(cache=True, nogil=True)
def _decode(words, pixels):  # pragma: no cover (compiled)
    at, i, previous = 0, 0, np.int64(0)
    zeros, depths, stage = np.int64(0), np.int64(0), 0
    while i < pixels.size or stage:
        value, shift = np.int64(0), 0
        while True:
            if at >= 8 * words.size or shift >= 3 * _MAX_NIBBLES:
                return False
            nibble = (np.int64(words[at >> 3]) >> (4 * (7 - (at & 7)))) & 15
            at += 1
            value |= (nibble & 7) << shift
            shift += 3
            if not nibble & 8:
                break
        if stage == 0:
            zeros, stage = value, 1
            if zeros > pixels.size - i:
                return False
            i += zeros
        elif stage == 1:
            depths = value
            if depths > pixels.size - i or (zeros == 0 and depths == 0):
                return False
            stage = 2 if depths else 0
        else:
            previous += (value >> 1) ^ -(value & 1)
            if previous < 1 or previous > 65535:
                return False
            pixels[i] = previous
            i += 1
            depths -= 1
            stage = 2 if depths else 0
    return True
