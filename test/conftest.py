"""What every test may use: a ROS domain of its own, generated messages, and waiting for a condition with a deadline."""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import hypothesis
import pytest

from clamp_ros.ros import environment, messages

DOMAINS = range(1, 102)  # above 101 the ports of a domain may collide with the kernel's ephemeral ones


def pytest_configure(config: pytest.Config) -> None:
    """Generates missing message packages and sets the transports before a test imports ROS."""
    environment.prepare()
    messages.ensure()
    # Before any test imports pyrealsense2, which has symbols that ROS's libraries have too. Whose come first are taken;
    # with the SDK's, the process ends in a segmentation fault.
    importlib.import_module("rclpy")
    # a busy machine is no failure
    hypothesis.settings.register_profile("clamp_ros", deadline=None)
    hypothesis.settings.load_profile("clamp_ros")


@pytest.fixture(autouse=True, scope="module")
def settled_heap() -> None:
    """Garbage collections pass over what is there already, as in our nodes.

    In the process of the whole suite a full one stops every thread for 0.7 s, emulated servos among them.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def ros_domain_id(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A ROS domain that no other test on this machine uses while this one runs; also in ROS_DOMAIN_ID, for children."""
    for domain in DOMAINS:
        lock = _lock_domain(domain)
        if lock is not None:
            with lock:
                monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
                yield domain
            return
    raise RuntimeError(f"all of the {len(DOMAINS)} ROS domains are in use by running tests")


def _lock_domain(domain: int) -> IO[str] | None:
    path = Path(tempfile.gettempdir()) / f"clamp_ros-test-domain-{os.getuid()}-{domain}.lock"
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


@pytest.fixture
def ros(ros_domain_id: int) -> Iterator[Ros]:
    """rclpy, started for this test alone, and an executor to spin."""
    import rclpy

    rclpy.init(domain_id=ros_domain_id)
    rig = Ros()
    try:
        yield rig
    finally:
        rig.close()
        rclpy.try_shutdown()


class Ros:
    """Nodes of one test and the executor that spins them."""

    def __init__(self) -> None:
        from rclpy.executors import SingleThreadedExecutor

        self.executor = SingleThreadedExecutor()
        self.nodes: list[Any] = []

    def add(self, node: Any) -> Any:
        """Spins a node from now on and destroys it at the test's end, after `close()` where it has one."""
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def node(self, name: str = "test", **options: Any) -> Any:
        """A fresh node, spun and destroyed by this rig."""
        from rclpy.node import Node

        return self.add(Node(name, **options))

    def spin_until(self, condition: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
        """Spins until the condition holds; fails the test at the deadline."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {timeout_s:g} s in vain{' for ' + what if what else ''}")
            self.executor.spin_once(timeout_sec=0.05)

    def call(self, node: Any, service_type: Any, name: str, request: Any = None, timeout_s: float = 10.0) -> Any:
        """Calls a service from a node of this rig and returns the response."""
        client = node.create_client(service_type, name)
        self.spin_until(client.service_is_ready, timeout_s, f"service {name}")
        future = client.call_async(service_type.Request() if request is None else request)
        self.spin_until(future.done, timeout_s, f"the answer of {name}")
        node.destroy_client(client)
        return future.result()

    def close(self) -> None:
        for node in self.nodes:
            if hasattr(node, "close"):
                node.close()
            node.destroy_node()
        self.executor.shutdown()
