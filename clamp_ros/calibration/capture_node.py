"""Takes the shots of a calibration session from a running system, one a key press.

It listens to the cameras that are to be calibrated, the joints and TF, and moves nothing. After each shot it says what
the cameras saw of the board, and what is still missing. The space bar is the emergency stop, as everywhere.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from std_srvs.srv import Trigger

from clamp_ros.calibration.board import Board
from clamp_ros.calibration.capture import Capture, continue_places, detect
from clamp_ros.calibration.session import MOUNTS, Session
from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import CalibrationError, ConfigError, ContractError, TransformError
from clamp_ros.contract.interfaces import (
    CAMERAS,
    CONTROL_ESTOP,
    JOINT_STATES,
    camera_info_topic,
    color_topic,
    depth_topic,
    optical_frame,
    topic,
)
from clamp_ros.control.stop_signal import send_stop_signal
from clamp_ros.ros.convert import array_from_image, joints_from_message, pinhole_from_camera_info, stamp_ns
from clamp_ros.ros.params import declare
from clamp_ros.ros.printer import telling
from clamp_ros.ros.run import Health, on_time_jump_back, run_node, subscribe
from clamp_ros.ros.terminal import ENTER, STOP, single_keys
from clamp_ros.ros.tf import TfListener

KEYS = "Enter: take a shot   b: the board was moved   u: undo the last shot   q: done   space: emergency stop"
_POLL_S = 0.05


@dataclass(frozen=True)
class CaptureNodeConfig:
    """Parameters of the node."""

    session: str = param("", "folder of the session; one that is there is gone on with")
    cameras: tuple[str, ...] = param(CAMERAS, "cameras to calibrate", choices=CAMERAS)
    frames: tuple[str, ...] = param((), "what each of them is mounted on, in that order; empty: as on an ALOHA 2")
    board: Board = field(default_factory=Board)
    timeout_s: float = param(2.0, "how long a shot waits for its pictures", unit="s", minimum=0.1, maximum=60.0)

    def __post_init__(self) -> None:
        check(self)
        if not self.session:
            raise ConfigError("session is empty, expected a folder")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"cameras are {list(self.cameras)}, expected one or more, each once")
        if self.frames and len(self.frames) != len(self.cameras):
            raise ConfigError(f"{len(self.frames)} frames are given for {len(self.cameras)} cameras")

    def mounts(self) -> dict[str, str]:
        """Camera name to the frame that it is mounted on."""
        frames = self.frames or tuple(MOUNTS[camera] for camera in self.cameras)
        return dict(zip(self.cameras, frames, strict=True))


class CaptureNode(Node):
    """See the module."""

    def __init__(
        self, *, keys: int | None = None, say: Callable[[str], None] = print,
        on_done: Callable[[], None] = lambda: None, **options: Any,
    ) -> None:  # fmt: skip
        """Opens the session and listens.

        Args:
            keys: file descriptor that key presses come from; standard input by default.
            say: told what the operator is to read.
            on_done: called when the operator has finished.
            options: of `rclpy.node.Node`.
        """
        super().__init__("calibration_capture", **options)
        config = declare(self, CaptureNodeConfig)
        self._config, self._say, self._on_done = config, say, on_done
        self.session = Session.create(Path(config.session), config.board, config.mounts())
        self._places = continue_places(self.session)
        self._capture = Capture(config.cameras)
        self._views = Counter(dict.fromkeys(config.cameras, 0))
        self._health = Health(self)
        self._tf = TfListener(self, self._health)
        self._estop = self.create_client(Trigger, CONTROL_ESTOP.name)
        self._asked: tuple[int, float] | None = None
        self.done = False
        self._keys = sys.stdin.fileno() if keys is None else keys
        for camera in config.cameras:
            subscribe(self, topic(color_topic(camera)), partial(self._on_image, camera, "rgb8"))
            subscribe(self, topic(depth_topic(camera)), partial(self._on_image, camera, "16UC1"))
            subscribe(self, topic(camera_info_topic(camera)), partial(self._on_info, camera))
        subscribe(self, JOINT_STATES, self._on_joints)
        self._jump = on_time_jump_back(self, self._capture.clear)
        self.create_timer(_POLL_S, self._poll, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._say(f"session {config.session}: {len(self.session.shots())} shots; board of {config.board}")
        self._say(KEYS)

    def _on_image(self, camera: str, encoding: str, message: Any) -> None:
        try:
            image = array_from_image(message, encoding, f"{encoding} image of {camera}")
        except ContractError as error:
            self._health.fault("refused", str(error))
            return
        add = self._capture.add_color if encoding == "rgb8" else self._capture.add_depth
        add(camera, stamp_ns(message.header.stamp), image)

    def _on_info(self, camera: str, message: Any) -> None:
        try:
            pinhole = pinhole_from_camera_info(message, f"camera_info of {camera}")
        except ContractError as error:
            self._health.fault("refused", str(error))
            return
        self._capture.add_pinhole(camera, stamp_ns(message.header.stamp), pinhole)

    def _on_joints(self, message: Any) -> None:
        try:
            self._capture.add_joints(stamp_ns(message.header.stamp), joints_from_message(message))
        except ContractError as error:
            self._health.fault("refused", str(error))

    def _poll(self) -> None:
        if self.done:
            return
        if self._asked is not None:
            self._try_shot(*self._asked)
        elif select.select([self._keys], [], [], 0.0)[0]:
            self._on_key(os.read(self._keys, 1).decode(errors="replace"))

    def _on_key(self, key: str) -> None:
        if key == STOP:
            self._say(self._stop())
        elif key in ENTER:
            self._asked = self.get_clock().now().nanoseconds, time.monotonic() + self._config.timeout_s
        elif key == "b":
            self._say(f"the board lies at place {self._places.new()} from now on")
        elif key == "u":
            aside = self.session.discard_last()
            self._places = continue_places(self.session)
            self._say("there is no shot to undo" if aside is None else f"set aside as {aside.name}")
        elif key in ("q", "", "\x04"):  # empty: nobody is there to press keys any more
            self.done = True
            self._say(f"{len(self.session.shots())} shots in {self.session.folder}")
            self._on_done()
        elif not key.isspace():
            self._say(f"no such key {key!r}; {KEYS}")

    def _stop(self) -> str:
        signalled = send_stop_signal()
        if self._estop.service_is_ready():
            self._estop.call_async(Trigger.Request())
        elif not signalled:
            return f"{CONTROL_ESTOP.name} IS NOT THERE: stop the arms where the system runs, or by the power switch"
        return "emergency stop asked for; `clamp stop --release` leaves it"

    def _try_shot(self, after_ns: int, deadline_s: float) -> None:
        if not self._capture.ready(after_ns) and time.monotonic() < deadline_s:
            return
        self._asked = None
        try:
            self._take(after_ns)
        except CalibrationError as error:
            self._say(f"no shot: {error}")

    def _take(self, after_ns: int) -> None:
        session = self.session
        shot, missing = self._capture.take(after_ns, self._places.place, self._poses())
        detections = detect(session.board, shot)
        seen = {camera: len(detection) for camera, detection in detections.items()}
        if not any(seen.values()):
            reasons = [f"{n}: {session.board.explain_absence(p.color)}" for n, p in shot.pictures.items()]
            raise CalibrationError("no camera sees the board\n  " + "\n  ".join(reasons))
        place = self._places.follow(detections, session.mounts, unknown_is_new=False)
        shot = type(shot)(shot.stamp_ns, shot.joints, place, shot.pictures)
        path = session.add(shot)
        self._views.update(camera for camera, corners in seen.items() if corners)
        corners = ", ".join(f"{camera} {count or '-'}" for camera, count in seen.items())
        self._say(f"{path.name}, place {place}: corners {corners}" + (f"; nothing from {missing}" if missing else ""))
        self._say("  views so far: " + ", ".join(f"{camera} {self._views[camera]}" for camera in self._config.cameras))
        for camera, count in seen.items():
            if not count:
                self._say(f"  {camera}: {session.board.explain_absence(shot.pictures[camera].color)}")

    def _poses(self) -> dict[str, NDArray[np.float64]]:
        """The cameras' present poses on TF, of those that have one."""
        poses = {}
        for camera, frame in self.session.mounts.items():
            with contextlib.suppress(TransformError):
                stamp = self._tf.tree.latest_common_stamp_ns(frame, optical_frame(camera))
                poses[camera] = self._tf.tree.lookup(frame, optical_frame(camera), stamp)
        return poses


def capture(parameters: list[str]) -> int:
    """Runs the node with ``name:=value`` parameters until the operator is done; returns the exit code."""
    words = [word for parameter in parameters for word in ("-p", parameter)]
    with single_keys(sys.stdin.fileno()), telling(sys.stdout) as say:
        # as Ctrl-C does: the node closes while ROS is up
        return run_node(
            lambda: CaptureNode(say=say, on_done=lambda: signal.raise_signal(signal.SIGINT)),
            ["clamp calibrate capture", "--ros-args", *words],
        )
