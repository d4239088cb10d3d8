"""Defaults that can be overridden, and shared memory: a killed process's goes, a living one's stays."""

from __future__ import annotations

import contextlib
import os
import re
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
    mine = {"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}
    environment.prepare(mine)
    assert mine == {"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}
    nothing: dict[str, str] = {}
    environment.prepare(nothing)
    assert Path(nothing["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()


def test_shared_memory_holds_a_burst_of_images(owner):
    """What Fast DDS really made: a tick of all cameras, 8 MB, fits some times; its own default is 0.5 MB."""
    _, mine = owner
    sizes = [(environment.SHARED_MEMORY / name.removesuffix("_el")).stat().st_size for name in mine]
    assert sizes and min(sizes) > 32_000_000


HEAR = """
import sys, time, rclpy
from std_msgs.msg import String
rclpy.init()
node = rclpy.create_node("user")
heard = []
node.create_subscription(String, "/told", heard.append, 10)
deadline = time.monotonic() + 30.0
while not heard and time.monotonic() < deadline:
    rclpy.spin_once(node, timeout_sec=0.1)
sys.exit(not heard)
"""


def test_a_terminal_with_the_defaults_of_ros_hears_us(ros):
    """The user's own `ros2` commands, the emergency stop among them, know nothing of our profile."""
    from std_msgs.msg import String

    told = ros.node("teller").create_publisher(String, "/told", 10)
    plain = {name: value for name, value in os.environ.items() if name not in environment.DEFAULTS}
    listener = subprocess.Popen([sys.executable, "-c", HEAR], env=plain)

    def heard() -> bool:
        told.publish(String(data="hello"))
        return listener.poll() is not None

    ros.spin_until(heard, 40.0, "the listener")
    assert listener.returncode == 0


SERVE = """
import sys
from rclpy.node import Node
from std_srvs.srv import Trigger
from clamp_ros.ros.run import run_node
def answer(_, response):
    response.success = True
    return response
class Server(Node):
    def __init__(self):
        super().__init__("server")
        self.create_service(Trigger, "/stop", answer)
sys.exit(run_node(Server, shared_memory=False))
"""
ASK = """
import sys, rclpy
from std_srvs.srv import Trigger
rclpy.init()
node = rclpy.create_node("asker")
client = node.create_client(Trigger, "/stop")
if not client.wait_for_service(30.0):
    sys.exit(1)
future = client.call_async(Trigger.Request())
rclpy.spin_until_future_complete(node, future, timeout_sec=30.0)
sys.exit(not (future.done() and future.result().success))
"""


def test_a_terminal_with_the_defaults_of_ros_is_answered_by_a_node_of_the_command_path():
    plain = {name: value for name, value in os.environ.items() if name not in environment.DEFAULTS}
    server = subprocess.Popen([sys.executable, "-c", SERVE])
    try:
        assert subprocess.run([sys.executable, "-c", ASK], env=plain, timeout=90.0).returncode == 0
    finally:
        server.kill()
        server.wait()


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


def test_ports_are_left_to_fast_dds(tmp_path):
    """Others may have a dead process's port open, and the next process takes its number."""
    names = {"fastdds_port7413", "fastdds_port7413_el", "sem.fastdds_port7413_mutex"}
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    assert environment.clean_shared_memory(tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == names


NODE = """
import sys
from rclpy.node import Node
from clamp_ros.ros.run import run_node
class Restarted(Node):
    def __init__(self):
        super().__init__("restarted")
        print("ready", flush=True)
sys.exit(run_node(Restarted))
"""


def _ports(process: subprocess.Popen[str]) -> set[int]:
    """The shared-memory ports at which a process listens, but that of ROS's graph, which counts from 7000."""
    opened: list[str] = []
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            opened.append(str(path.readlink()))
    numbers = {int(found[1]) for name in opened if (found := re.search(r"fastdds_port(\d+)_el", name))}
    return {number for number in numbers if number >= 7400}


def test_a_restarted_node_does_not_listen_at_the_ports_of_the_killed_one(tmp_path):
    """Fast DDS's living senders go on to make and to remove those."""
    before: set[int] = set()
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", NODE], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            ports = _ports(process)
        finally:
            process.kill()
            process.communicate()
        assert len(ports) == 1 and not ports & before
        before |= ports


def test_a_node_of_the_command_path_has_no_lock_in_common_with_another_process(ros):
    program = NODE.replace("run_node(Restarted)", "run_node(Restarted, shared_memory=False)")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        watcher = ros.node("watcher")
        ros.spin_until(lambda: "restarted" in watcher.get_node_names(), what="the node to be found all the same")
        assert not _ports(process)
        assert f"{environment.SHARED_MEMORY}/fastdds" not in Path(f"/proc/{process.pid}/maps").read_text()
    finally:
        process.kill()
        process.communicate()


def test_a_profile_of_the_user_is_not_replaced():
    mine = {"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}
    with environment.participant(mine):
        assert mine == {"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}
    ours: dict[str, str] = {}
    environment.prepare(ours)
    with environment.participant(ours):
        assert "<participantID>" in Path(ours["FASTDDS_DEFAULT_PROFILES_FILE"]).read_text()
    assert ours == environment.DEFAULTS
