"""What the disk can take, measured, against what is going to be written to it; in words."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from clamp_ros.contract.errors import RecordError

_BLOCK_BYTES = 8 << 20
_MAX_BYTES = 1 << 30
_MB = 1e6


def write_speed(folder: Path, seconds: float) -> float:
    """Bytes a second that reach the disk under a folder, by writing a file there for so long and removing it.

    Each block is waited for: a disk's cache in memory takes anything, for a while. Noise does not compress.

    Raises:
        RecordError: the folder cannot be written to.
    """
    block = os.urandom(_BLOCK_BYTES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            written, start = 0, time.monotonic()
            while (elapsed := time.monotonic() - start) < seconds and written < _MAX_BYTES:
                written += file.write(block)
                os.fdatasync(file.fileno())
            return written / max(elapsed, 1e-6)
    except OSError as error:
        raise RecordError(f"cannot write to {folder}: {error}") from error


def shortage(folder: Path, disk_bytes_s: float, coming_bytes_s: float, ratio: float, queue_bytes: int) -> str | None:
    """A plain word where the disk cannot keep up, else None.

    Args:
        folder: of the bags.
        disk_bytes_s: what `write_speed` has measured.
        coming_bytes_s: what the topics send.
        ratio: what compression leaves of it, 0 to 1; 1 where that is not known yet.
        queue_bytes: what may wait in memory.
    """
    lacking = ratio * coming_bytes_s - disk_bytes_s
    if lacking <= 0.0:
        return None
    compressed = f", {ratio * coming_bytes_s / _MB:.0f} MB/s compressed" if ratio < 1.0 else ""
    return (
        f"the topics send {coming_bytes_s / _MB:.0f} MB/s{compressed}, and the disk of {folder} writes"
        f" {disk_bytes_s / _MB:.0f} MB/s: the queue is full after {ratio * queue_bytes / lacking:.0f} s, or as soon as"
        " memory has no room to cache, and messages will be dropped; record fewer cameras, images:=compressed, or to"
        " another folder"
    )
