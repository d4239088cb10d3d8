"""Shots of a calibration session from a running system: real topics, key presses through a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_scene import board_places
from calibration_synthetic import BOARD, PINHOLES, TRUTH, picture, world_from_camera
from calibration_synthetic import CAMERAS as SIMULATED
from rclpy.parameter import Parameter

from clamp_ros.calibration.capture_node import CaptureNode
from clamp_ros.calibration.poses import looking_poses
from clamp_ros.calibration.session import Session
from clamp_ros.contract.errors import CalibrationError, ConfigError
from clamp_ros.contract.interfaces import (
    CONTROL_ESTOP,
    JOINT_STATES,
    camera_info_topic,
    color_topic,
    depth_topic,
    optical_frame,
    topic,
)
from clamp_ros.geometry.transforms import invert
from clamp_ros.ros.convert import camera_info_message, image_message, joint_state_message
from clamp_ros.ros.run import advertise, serve
from clamp_ros.ros.tf import TfBroadcaster

NAMES = ("front_left", "wrist_left")
PLACE = board_places(BOARD, 1)[0]
JOINTS = looking_poses(BOARD, SIMULATED, PLACE, 1, np.random.default_rng(0))[0]


class Cell:
    """Cameras, joints and TF of a robot that stands still, sent at 20 Hz."""

    def __init__(self, ros: Any, cameras: tuple[str, ...] = NAMES) -> None:
        self.ros, self.cameras, self.joints = ros, cameras, np.array(JOINTS)
        self.node = ros.node("cell")
        self._joints = advertise(self.node, JOINT_STATES)
        self._color = {c: advertise(self.node, topic(color_topic(c))) for c in cameras}
        self._depth = {c: advertise(self.node, topic(depth_topic(c))) for c in cameras}
        self._info = {c: advertise(self.node, topic(camera_info_topic(c))) for c in cameras}
        TfBroadcaster(self.node).send_static([("world", optical_frame("front_left"), TRUTH["front_left"])], 0)
        self.pictures = {
            c: picture(BOARD, PINHOLES[c], invert(world_from_camera(c, JOINTS)) @ PLACE) for c in cameras
        }  # fmt: skip
        self.shake = 0.0
        self._ticks = 0
        self.node.create_timer(0.01, self._send)

    def _send(self) -> None:
        self._ticks += 1
        now = self.node.get_clock().now().nanoseconds
        self._joints.publish(joint_state_message(self.joints + self.shake * (self._ticks % 2), now))
        if self._ticks % 5:
            return
        for camera in self.cameras:
            frame, pinhole = optical_frame(camera), PINHOLES[camera]
            depth = np.full((pinhole.height, pinhole.width), 500, np.uint16)
            self._color[camera].publish(image_message(self.pictures[camera], "rgb8", now, frame))
            self._depth[camera].publish(image_message(depth, "16UC1", now, frame))
            self._info[camera].publish(camera_info_message(pinhole, now, frame))


@pytest.fixture
def keys() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        os.close(fd)


def capture_node(ros: Any, folder: Path, reader: int, said: list[str], **values: Any) -> CaptureNode:
    parameters = {"session": str(folder), "cameras": list(NAMES), **values}
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    return ros.add(CaptureNode(keys=reader, say=said.append, parameter_overrides=overrides))


def test_a_session_is_taken_by_key_presses(ros, tmp_path, keys):
    cell, said = Cell(ros), []
    node = capture_node(ros, tmp_path / "s", keys[0], said, timeout_s=20.0)

    def press(key: bytes, answer: str) -> None:
        said.clear()
        os.write(keys[1], key)
        ros.spin_until(lambda: any(answer in text for text in said), 60.0, f"{answer!r}, not {said}")

    ros.spin_until(lambda: node._capture.ready(0) and len(node._poses()) == 1, 60.0, "the cell's topics")
    press(b"\n", "shot_000, place 0: corners front_left")
    ros.spin_until(lambda: any("views so far: front_left 1, wrist_left 1" in text for text in said), 10.0)
    cell.shake = 0.05
    press(b"\n", "no shot: ")
    assert "let the arms come to rest" in said[-1]
    cell.shake = 0.0
    press(b"x", "no such key 'x'")
    press(b" ", "IS NOT THERE")
    stopped: list[Any] = []
    serve(cell.node, CONTROL_ESTOP, lambda request, response: stopped.append(request) or response)
    ros.spin_until(node._estop.service_is_ready, 30.0, "the service")
    press(b" ", "emergency stop asked for")
    ros.spin_until(lambda: stopped, 30.0, "the stop")
    press(b"b", "place 1 from now on")
    ros.spin_until(lambda: np.ptp([j[1][0] for j in list(node._capture._joints)[-60:]]) < 0.01, 60.0, "arms at rest")
    press(b"\n", "shot_001, place 1")
    press(b"u", "set aside as discarded_001")
    cell.pictures = {name: np.full_like(image, 90) for name, image in cell.pictures.items()}
    # a picture from before that is on its way still shows the board
    frames = node._capture._frames[NAMES[0]]
    ros.spin_until(lambda: all(f.color is not None and f.color.max() == 90 for f in [*frames.values()]), 60.0)
    press(b"\n", "no camera sees the board")
    press(b"q", "1 shots in")
    assert node.done
    session = Session.open(tmp_path / "s")
    shot = session.read(session.shots()[0])
    assert shot.joints == pytest.approx(JOINTS) and set(shot.pictures) == set(NAMES)
    pose = shot.pictures["front_left"].frame_from_camera
    assert pose is not None
    np.testing.assert_allclose(pose, TRUTH["front_left"], atol=1e-9)
    assert shot.pictures["wrist_left"].frame_from_camera is None, "it has none on TF"
    for name in NAMES:
        assert shot.pictures[name].pinhole == PINHOLES[name] and shot.pictures[name].depth_mm is not None
        assert len(session.board.detect(shot.pictures[name].color)) > 10


def test_a_missing_camera_is_named_and_an_ended_input_ends_the_session(ros, tmp_path, keys):
    Cell(ros, cameras=("front_left",))
    said: list[str] = []
    node = capture_node(ros, tmp_path / "s", keys[0], said, timeout_s=1.0)
    ros.spin_until(lambda: node._capture._newest("front_left", 0) is not None, 60.0, "the cell's topics")
    ros.spin_until(lambda: len(node._capture._joints) > 100, 60.0, "joints")
    os.write(keys[1], b"\n")
    ros.spin_until(lambda: len(said) > 2, 60.0, "an answer")
    assert any("nothing from ['wrist_left']" in text for text in said), said
    os.write(keys[1], b"\x04")
    ros.spin_until(lambda: node.done, 10.0)


def test_settings_that_cannot_be_are_refused(ros, tmp_path, keys):
    for values, message in (
        ({"session": ""}, "session is empty"),
        ({"cameras": ["top"]}, "cameras is 'top', expected one of"),
        ({"frames": ["world"]}, "1 frames are given for 2 cameras"),
        ({"board.square_m": 1.0}, "board.square_m is 1.0, expected 0.005 to 0.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            capture_node(ros, tmp_path / "s", keys[0], [], **values)
    Session.create(tmp_path / "s", BOARD, {"back_right": "world"})
    with pytest.raises(CalibrationError, match="go on with the same, or choose another folder"):
        capture_node(ros, tmp_path / "s", keys[0], [])
