"""How many threads the kernels use, and numba's threading layer, chosen before anything is compiled."""

from __future__ import annotations

import importlib
import logging
import os

import numba
from numba.core import config

from clamp_ros.contract.errors import ConfigError

MAX_THREADS = 8
"""More do not help: a frame is a few milliseconds of work, and every thread has buffers of its own."""


def choose_threading_layer() -> str:
    """Asks numba for OpenMP where it has it, unless NUMBA_THREADING_LAYER says otherwise; gives the choice.

    Starting the threads of a kernel takes 2 us with `omp` and 20 us with the portable `workqueue`, which moreover
    allows only one caller at a time.
    """
    if "NUMBA_THREADING_LAYER" in os.environ:
        return os.environ["NUMBA_THREADING_LAYER"]
    try:
        importlib.import_module("numba.np.ufunc.omppool")  # there if numba was built with OpenMP, and libgomp loads
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "numba has no OpenMP here (%s); fusion falls back on another threading layer: slower, and unsafe where two "
            "threads fuse at once. On Debian and Ubuntu, libgomp1 brings it.",
            error,
        )
        config.THREADING_LAYER = "default"  # pyright: ignore[reportAttributeAccessIssue]
    else:
        config.THREADING_LAYER = "omp"  # pyright: ignore[reportAttributeAccessIssue]
    return config.THREADING_LAYER  # pyright: ignore[reportAttributeAccessIssue]


def thread_count(threads: int | None) -> int:
    """The number asked for, or by default one per CPU that numba may use, at most MAX_THREADS.

    Raises:
        ConfigError: the number asked for is not 1 to MAX_THREADS.
    """
    if threads is None:
        return min(numba.get_num_threads(), MAX_THREADS)
    if not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"threads is {threads}, expected 1 to {MAX_THREADS}")
    return threads
