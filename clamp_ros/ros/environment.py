"""The defaults a ROS process of ours starts with: discovery within this host, a transport fit for images, clean memory.

Everything here is a default: a variable that the user has set is left alone. `clamp_ros.ros.run.run_node` calls
`prepare` before rclpy starts; whoever starts nodes (`clamp up`, tests) calls it once for all of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator, MutableMapping
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

PARTICIPANTS = range(40, 100)
"""Participant IDs that are handed out in turn. Their ports lie within those of every ROS domain.

Processes that do not ask for one take the first that is free, from 0 on, and one whose ports are taken moves on to the
next: ours stay clear of them.
"""

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


@contextlib.contextmanager
def participant(environment: MutableMapping[str, str] = os.environ, *, shared_memory: bool = True) -> Iterator[None]:
    """While this process makes its one participant: our profile, with an ID that no participant had lately.

    The ID fixes the ports. Fast DDS would take the first free ones, in a restarted node those of the killed one, to
    which living nodes go on to send for 20 s. All that time they make and remove its port in shared memory, by name,
    hundreds of times a second, and now and then the restarted node's with it, which then is deaf.

    A profile of the user's own is left alone.

    Args:
        environment: changed within the context only, so that no child inherits what is of this process.
        shared_memory: False for who must not wait for another process, and handles no images. A port of shared memory
            has a lock, which its reader holds now and then; while a reader is kept from running with it, whoever
            publishes to it waits for up to a second a message. Over UDP nobody waits.
    """
    if environment.get(_VARIABLE) != str(PROFILE):
        yield
        return
    profile = PROFILE.read_text(encoding="utf-8")
    profile = profile.replace("<rtps>", f"<rtps><participantID>{_next_participant()}</participantID>", 1)
    if not shared_memory:
        profile = re.sub(r"(<userTransports>\s*)<transport_id>clamp_shm</transport_id>", r"\1", profile)
    with tempfile.NamedTemporaryFile("w", prefix="clamp_ros-", suffix=".xml", encoding="utf-8") as file:
        file.write(profile)
        file.flush()
        environment[_VARIABLE] = file.name
        try:
            yield
        finally:
            environment[_VARIABLE] = str(PROFILE)


def _next_participant() -> int:
    """One of PARTICIPANTS, in turn over all processes of this user."""
    with (SHARED_MEMORY / f"clamp_ros-{os.getuid()}-participant").open("a+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        number = int(text) + 1 if text.isdigit() else PARTICIPANTS.start
        if number not in PARTICIPANTS:
            number = PARTICIPANTS.start
        file.truncate(0)
        file.write(str(number))
    return number


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
