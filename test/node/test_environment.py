"""Defaults that can be overridden, and shared memory: a killed process's goes, a living one's stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clamp_ros.ros import environment

START = """
import signal, rclpy
rclpy.init()
node = rclpy.create_node("owner")
print("ready", flush=True)
signal.pause()
"""


def test_defaults_yield_to_the_user():
    mine = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}
    environment.prepare(mine)
    assert mine["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SUBNET"
    assert mine["FASTDDS_BUILTIN_TRANSPORTS"].startswith("LARGE_DATA?")


def _segments() -> set[str]:
    return {path.name for path in environment.SHARED_MEMORY.glob("fastdds_*_el") if "port" not in path.name}


@pytest.fixture
def owner():
    """A ROS process, and the names of the segments it made."""
    before = _segments()
    process = subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    locks = Path("/proc/locks").read_text().splitlines()
    inodes = {int(line.split()[5].split(":")[2]) for line in locks if line.split()[4] == str(process.pid)}
    mine = {name for name in _segments() - before if (environment.SHARED_MEMORY / name).stat().st_ino in inodes}
    yield process, mine
    process.kill()
    process.communicate()


def _age(names: set[str]) -> None:
    for name in names:
        os.utime(environment.SHARED_MEMORY / name, (0, 0))


def test_a_killed_process_leaves_segments_and_the_next_start_removes_them(owner):
    process, mine = owner
    assert mine, "Fast DDS made no segment: does it still name them fastdds_*?"
    _age(mine)
    environment.clean_shared_memory()
    assert mine <= _segments(), "a living process lost its segment"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert mine <= _segments()
    environment.clean_shared_memory()
    assert not mine & _segments()


def test_a_segment_in_the_making_is_left_alone(tmp_path):
    segment, lock = tmp_path / "fastdds_0123", tmp_path / "fastdds_0123_el"
    segment.touch()
    lock.touch()
    assert environment.clean_shared_memory(tmp_path) == 0
    os.utime(lock, (0, 0))
    assert environment.clean_shared_memory(tmp_path) == 1
    assert not list(tmp_path.iterdir())
