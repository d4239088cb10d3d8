"""The defaults a ROS process of ours starts with: discovery within this host, a transport fit for images, clean memory.

Everything here is a default: a variable that the user has set is left alone. `clamp_ros.ros.run.run_node` calls
`prepare` before rclpy starts; whoever starts nodes (`clamp up`, tests) calls it once for all of them.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import MutableMapping
from pathlib import Path

PROFILE = Path(__file__).with_name("fastdds.xml")
"""Fast DDS's profile: shared memory that holds images, quick repair of losses, and no talk with other hosts.

Not by ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, with which rmw_fastrtps adds transports of its own (512 KB of shared
memory, which one tick of images overflows; what is lost came three seconds later).
"""

# Fast DDS 3 renamed the variable; Jazzy and older have version 2, and rmw warns of the other's name.
_BEFORE_FAST_DDS_3 = ("humble", "iron", "jazzy")
_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE" if os.environ.get("ROS_DISTRO") in _BEFORE_FAST_DDS_3 else (
    "FASTDDS_DEFAULT_PROFILES_FILE"
)
DEFAULTS = {_VARIABLE: str(PROFILE)}
"""Environment variable to the value it gets where it is unset."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (shared memory, not a temporary file)
_LOCK_SUFFIX = "_el"
_MINIMUM_AGE_S = 1.0  # a segment being created is not locked yet


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the defaults that the user has not set, and removes shared memory that dead processes left behind.

    Args:
        environment: changed in place; children inherit it.
    """
    for name, value in DEFAULTS.items():
        environment.setdefault(name, value)
    clean_shared_memory()


def clean_shared_memory(folder: Path = SHARED_MEMORY) -> int:
    """Removes Fast DDS segments of this user whose owner is dead; a killed process leaves its own behind.

    Fast DDS holds a file lock on ``<segment>_el`` while a segment's owner lives, and the kernel releases it with the
    process, whatever killed it. A lock that can be had is a dead owner's.

    Ports (``fastdds_port<number>``, 0.2 MB) are left to Fast DDS: their numbers are used again, living processes hold
    them open, and it renews them under a mutex of theirs. Removed from outside, and the mutex too, a restarted node
    now and then listened at a port that nobody else could open.

    Args:
        folder: where segments are; another one only in tests.

    Returns:
        How many segments were removed.
    """
    removed = 0
    for pattern in ("fastdds_*", "fastrtps_*"):
        for lock in folder.glob(pattern + _LOCK_SUFFIX):
            if not lock.name.startswith(f"{pattern[:-1]}port"):
                removed += _remove_if_dead(lock)
    return removed


def _remove_if_dead(lock: Path) -> bool:
    name = lock.name.removesuffix(_LOCK_SUFFIX)
    try:
        status = lock.stat()
        if status.st_uid != os.getuid() or time.time() - status.st_mtime < _MINIMUM_AGE_S:
            return False
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in (lock.with_name(name), lock):
                path.unlink(missing_ok=True)
    except OSError:  # locked by a living owner, or gone meanwhile
        return False
    return True
