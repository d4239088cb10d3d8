"""Settings of the process that make training on a CPU faster."""

from __future__ import annotations

import ctypes
import logging
import sys

import torch

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def prepare(threads: int) -> None:
    """Sets torch's threads and lets malloc keep what is freed.

    glibc returns large blocks to the kernel at every free, and each step's activations then fault their pages in
    again, which halved the training rate. Threads that share their cores with other work wait for each other at every
    operation: one is then faster than two.
    """
    torch.set_num_threads(threads)
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent where the C library is not glibc
    if mallopt is None or not (mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1)):
        log.info("malloc cannot be told to keep freed memory; training may be slower")
