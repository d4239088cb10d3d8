"""The robot's graph, `sim:=false`, on emulated devices: servos on a wire, and recordings in the cameras' place."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hardware_emulation.rig import GRIPPER, MOTORS, TOGETHER
from hardware_emulation.servos import Emulator, follower
from realsense_recording import Lens, record, shots
from std_srvs.srv import SetBool, Trigger
from tiny_artifact import build_tiny_artifact

from clamp_ros.arm.aloha2 import HOME_RAD
from clamp_ros.contract.interfaces import (
    ARMS_HOME,
    ARMS_STATUS,
    CONTROL_ESTOP,
    CONTROL_STATUS,
    JOINT_STATES,
    POLICY_ENABLE,
)
from clamp_ros.contract.robot import CHUNK_SIZE, REST_POSE
from clamp_ros.policy.artifact import CameraSpec
from clamp_ros.ros.convert import joints_from_message
from clamp_ros.ros.run import subscribe

LENS = Lens(64, 48, 50.0, 31.5, 23.5)
CAMERAS = ("front_left", "back_right")
TIMEOUT_S = 120.0
DEADLINES: dict[str, Any] = {"command_timeout_s": 1.0, **TOGETHER}  # of a busy machine


def _policy(folder: Path) -> Path:
    """A policy whose left waist is never at rest, for the recorded cameras."""
    target = np.tile(REST_POSE, (CHUNK_SIZE, 1))
    target[:, 0] = 0.2 * np.sin(np.linspace(0.0, 4.0 * np.pi, CHUNK_SIZE))
    camera = CameraSpec(LENS.width, LENS.height, LENS.f, LENS.f, LENS.cx, LENS.cy, rgb=False)
    return build_tiny_artifact(folder, target=target, cameras=dict.fromkeys(CAMERAS, camera), image_rate_hz=30.0).folder


def _write(path: Path, node: str, values: dict[str, Any]) -> Path:
    # JSON is YAML, and without aliases, which ROS refuses
    path.write_text(json.dumps({node: {"ros__parameters": values}}))
    return path


@pytest.mark.slow
def test_the_loop_closes_over_the_drivers_and_stops_when_told(ros, tmp_path):
    recording = record(tmp_path / "d435.db3", shots(range(1, 31), 0.9, 0.001, LENS, LENS), unit_m=0.001, color=LENS,
                       depth=LENS, name="D435")  # fmt: skip
    pose = {"position_m": [0.0, 0.0, 1.0], "quat_xyzw": [1.0, 0.0, 0.0, 0.0], "frame": "world"}
    size = {"width": LENS.width, "height": LENS.height, "depth_width": LENS.width, "depth_height": LENS.height}
    one = {"recording": str(recording), "warmup_frames": 0, **size, **pose}
    cameras = _write(tmp_path / "cameras.yaml", "/**", dict.fromkeys(CAMERAS, one))
    left, right = follower(), follower()
    peer = ros.node("operator")
    status: dict[str, str] = {}
    ready = ("holding", "following")  # the control node's commands are to stay where they are
    waist: list[float] = []
    subscribe(peer, CONTROL_STATUS, lambda message: status.update(control=message.message))
    subscribe(peer, ARMS_STATUS, lambda message: status.update(arms=message.values[0].value))
    subscribe(peer, JOINT_STATES, lambda message: waist.append(joints_from_message(message)[0]))
    log = (tmp_path / "log.txt").open("w+")

    def until(condition: Any, what: str) -> None:
        ros.spin_until(lambda: system.poll() is not None or condition(), TIMEOUT_S, what)
        log.seek(0)
        assert system.poll() is None, log.read()

    with Emulator(left, right):
        sides = {"left": {"port": left.port, **GRIPPER}, "right": {"port": right.port, **GRIPPER}}
        arms = _write(tmp_path / "arms.yaml", "arm_node", {**sides, "motors": MOTORS, **DEADLINES})
        policy = _policy(tmp_path / "tiny")
        words = ["sim:=false", f"policy:={policy}", f"camera_config:={cameras}", f"arm_config:={arms}"]
        system = subprocess.Popen([sys.executable, "-m", "clamp_ros.cli", "up", *words], stdout=log, stderr=log)
        try:
            until(lambda: status.get("arms") in ready and "no action" in status.get("control", ""), "the arms")
            assert ros.call(peer, Trigger, ARMS_HOME.name, timeout_s=TIMEOUT_S).success
            until(lambda: status["arms"] == "moving", "the arms to go home")
            until(lambda: status["arms"] in ready, "the arms at home")
            assert waist[-1] == pytest.approx(HOME_RAD[0], abs=0.02)
            assert ros.call(peer, SetBool, POLICY_ENABLE.name, SetBool.Request(data=True), TIMEOUT_S).success
            waist.clear()
            until(lambda: status["control"] == "running" and waist and np.ptp(waist) > 0.05, "the waist to move")
            assert ros.call(peer, Trigger, CONTROL_ESTOP.name, timeout_s=TIMEOUT_S).success
            until(lambda: status["control"].startswith("stopped"), "the stop")
            until(lambda: len(waist) > 50 and np.ptp(waist[-50:]) < 0.005, "the arms to stand still")
            assert {value for bus in (left, right) for value in bus.values("torque_enable").values()} == {1}
        finally:
            system.send_signal(signal.SIGINT)
            code = system.wait(30.0)
        log.seek(0)
        told = log.read()
        log.close()
        assert code == 0, told
        assert "Traceback" not in told, told
