"""The policy's process is killed while the arms move: the control process goes on at 50 Hz and the arms hold."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sensor_msgs.msg import JointState
from tiny_artifact import TINY_CAMERA, TINY_CAMERAS, build_tiny_artifact

from clamp_ros.contract.interfaces import (
    CONTROL_STATUS,
    JOINT_COMMANDS,
    JOINT_STATES,
    VIEWS,
    Qos,
    camera_info_topic,
    topic,
)
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.contract.views import TILED_SHAPE, WORLD_FRAME
from clamp_ros.geometry.pinhole import Pinhole
from clamp_ros.ros.convert import camera_info_message, image_message, joint_state_message, joints_from_message, stamp_ns
from clamp_ros.ros.run import advertise, qos_profile, subscribe

LIVE = Pinhole(TINY_CAMERA.width, TINY_CAMERA.height, TINY_CAMERA.fx, TINY_CAMERA.fy, TINY_CAMERA.cx, TINY_CAMERA.cy)


class Robot:
    """Arms that follow their commands at once, cameras, and fused views, on the wall clock."""

    def __init__(self, ros: Any) -> None:
        self.node = ros.node("robot")
        self.pose = REST_POSE.copy()
        self.commands: list[tuple[int, np.ndarray]] = []
        self.status = ""
        self._joints = advertise(self.node, JOINT_STATES)
        self._views = advertise(self.node, VIEWS)
        self._infos = {name: advertise(self.node, topic(camera_info_topic(name))) for name in TINY_CAMERAS}
        self.node.create_subscription(JointState, JOINT_COMMANDS.name, self._on_command, qos_profile(Qos.STATE))
        subscribe(self.node, CONTROL_STATUS, self._on_status)
        self.node.create_timer(0.02, self._measure)
        self.node.create_timer(0.1, self._see)

    def _now(self) -> int:
        return self.node.get_clock().now().nanoseconds

    def _on_command(self, message: JointState) -> None:
        self.pose = joints_from_message(message)
        self.commands.append((stamp_ns(message.header.stamp), self.pose))

    def _on_status(self, message: Any) -> None:
        self.status = message.message

    def _measure(self) -> None:
        self._joints.publish(joint_state_message(self.pose, self._now()))

    def _see(self) -> None:
        stamp = self._now()
        for name, publisher in self._infos.items():
            publisher.publish(camera_info_message(LIVE, stamp, name))
        views = np.full(TILED_SHAPE, 0.5, np.float32)
        self._views.publish(image_message(views, "32FC4", stamp - 40_000_000, WORLD_FRAME))


@pytest.fixture
def processes() -> Any:
    running: list[subprocess.Popen[bytes]] = []

    def start(module: str, **parameters: Any) -> subprocess.Popen[bytes]:
        arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
        running.append(subprocess.Popen([sys.executable, "-m", module, "--ros-args", *arguments]))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_the_arms_hold_when_the_policy_is_killed(ros: Any, processes: Any, tmp_path: Path) -> None:
    target = np.tile(REST_POSE, (CHUNK_SIZE, 1))
    target[:, 0] = 0.3 * np.sin(np.linspace(0.0, 4.0 * np.pi, CHUNK_SIZE))  # never at rest
    artifact = build_tiny_artifact(tmp_path / "tiny", target=target)
    robot = Robot(ros)
    control = processes("clamp_ros.control.control_node")
    policy = processes("clamp_ros.policy.policy_node", artifact=artifact.folder, threads=1)
    ros.spin_until(lambda: robot.status.startswith("running"), 60.0, "the arms to run")
    ros.spin_until(lambda: np.ptp([c[0] for _, c in robot.commands[-50:]]) > 0.1, 30.0, "the arms to move")

    policy.send_signal(signal.SIGKILL)
    ros.spin_until(lambda: policy.poll() is not None, 30.0, "the policy to be gone")  # the robot's clockwork goes on
    ros.spin_until(lambda: "run out" in robot.status, 30.0, "the arms to hold for it")
    held = len(robot.commands)
    ros.spin_until(lambda: len(robot.commands) >= held + 50, 30.0, "a second of commands")
    assert control.poll() is None
    stamps = [stamp for stamp, _ in robot.commands[held:]]
    assert all(stamp % CONTROL_PERIOD_NS == 0 for stamp in stamps)
    assert stamps == sorted(set(stamps))
    for _, command in robot.commands[held:]:
        np.testing.assert_array_equal(command, robot.commands[held][1])

    policy = processes("clamp_ros.policy.policy_node", artifact=artifact.folder, threads=1)  # and goes on
    ros.spin_until(lambda: robot.status.startswith("running"), 60.0, "the arms to run again")
    control.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 20.0
    ros.spin_until(lambda: control.poll() is not None or time.monotonic() > deadline, 30.0, "control to stop")
    assert control.returncode == 0
