"""`clamp calibrate rehearse`: a whole calibration session in simulation, as one would hold it on the robot.

The simulation lays a board, the arms go from pose to pose through the safety gate, the capture node takes the shots
from the topics, one a key press, and the cameras come out of them without any poses to start from. Where they are is
known here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState

from clamp_ros.arm.motion import Motion
from clamp_ros.bringup.session import START_TIMEOUT_S, Session
from clamp_ros.calibration import quality
from clamp_ros.calibration.board import Board
from clamp_ros.calibration.capture_node import CaptureNode
from clamp_ros.calibration.poses import looking_poses
from clamp_ros.calibration.session import Session as Shots
from clamp_ros.calibration.solve import distance, observe, solve
from clamp_ros.contract.errors import CalibrationError
from clamp_ros.contract.interfaces import CAMERAS, JOINT_COMMANDS, REPLAY_TARGETS
from clamp_ros.contract.robot import CONTROL_PERIOD_NS
from clamp_ros.ros.convert import joint_state_message, joints_from_message
from clamp_ros.ros.run import advertise, subscribe
from clamp_ros.sim.cameras import default_cameras
from clamp_ros.sim.tasks.board import PLACES, board_place, place_of_seed

_SPEED_RAD_S = 1.0
_ARRIVED_RAD = 0.02
_MOVE_S, _SHOT_S = 120.0, 120.0
"""Deadlines of the wall: the simulation may run at a tenth of real time."""
_SHOT_WAIT_S = 10.0
_IMAGE_RATE_HZ = 2


@dataclass(frozen=True)
class Recovered:
    """How far a camera came out from where it is."""

    camera: str
    mm: float
    deg: float


class _Arms:
    """Moves the arms of a running system: targets at 50 Hz, which pass the safety gate."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._commanded: NDArray[np.float64] | None = None
        self._motion: Motion | None = None
        self._targets = advertise(session.node, REPLAY_TARGETS)
        subscribe(session.node, JOINT_COMMANDS, self._on_command)
        session.node.create_timer(CONTROL_PERIOD_NS / 1e9, self._tick)

    def _on_command(self, message: JointState) -> None:
        self._commanded = joints_from_message(message)

    def _now_ns(self) -> int:
        return self._session.node.get_clock().now().nanoseconds

    def _tick(self) -> None:
        now_ns = self._now_ns()
        if self._motion is not None:
            self._targets.publish(joint_state_message(self._motion.at(1e-9 * now_ns), now_ns))

    def rest(self) -> None:
        """Wants nothing any more; where the arms were told to be is forgotten."""
        self._motion, self._commanded = None, None

    def go(self, joints: NDArray[np.float64]) -> bool:
        """Moves to (14,) joints; whether the gate let the arms go all the way."""
        self._session.spin_until(lambda: self._commanded is not None, _MOVE_S, "commands of the arms")
        start = np.array(self._commanded)
        motion = self._motion = Motion.between(start, joints, 1e-9 * self._now_ns(), _SPEED_RAD_S)
        self._session.spin_until(lambda: motion.over(1e-9 * self._now_ns() - 0.5), _MOVE_S, "the end of a motion")
        return bool(np.abs(np.array(self._commanded) - joints).max() < _ARRIVED_RAD)


def rehearse(
    folder: Path, *, places: int = PLACES, shots: int = 3, seed: int = 0, size: tuple[int, int] = (848, 480),
    say: Callable[[str], None] = print,
) -> list[Recovered]:  # fmt: skip
    """Takes a session in simulation, computes the cameras from it, and tells how far each is from the truth.

    Args:
        folder: for the session, in its folder `session`, and the simulation's log.
        places: of the board.
        shots: at each place.
        seed: of the arms' poses.
        size: of the pictures; less than 848 x 480 shows too little of a board a metre away.
        say: told what happens.

    Raises:
        CalibrationError: a number is out of range, the session is there already, its folder cannot be made, or too few
            shots came out.
        SystemDiedError: the simulation did not come up, or ended.
    """
    if not 1 <= places <= PLACES or shots < 1 or seed < 0:
        raise CalibrationError(
            f"places is {places}, shots {shots} and seed {seed}, expected 1 to {PLACES}, 1 or more and 0 or more"
        )
    taken = folder / "session"
    if taken.exists():
        raise CalibrationError(f"{folder} holds a session already; name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalibrationError(f"{folder} cannot be made: {error}") from error
    board, cameras = Board(), default_cameras(width=size[0], height=size[1])
    seeds = [next(s for s in range(1000) if place_of_seed(s) == place) for place in range(places)]
    simulation = {"width": size[0], "height": size[1], "image_rate_hz": _IMAGE_RATE_HZ}
    config = folder / "simulation.yaml"
    config.write_text(json.dumps({"mujoco_node": {"ros__parameters": simulation}}))  # JSON is YAML
    words = ["record", "sim:=true", "by:=replay", "board:=true", f"cameras:={','.join(CAMERAS)}", f"seed:={seeds[0]}",
             f"config:={config}", f"record_to:={folder}"]  # fmt: skip
    say(f"starting the simulation; its log is {folder / 'log.txt'}")
    keys, press = os.pipe()
    rng = np.random.default_rng(seed)
    try:
        with Session(words, folder / "log.txt", "rehearsal") as session:
            session.spin_until(lambda: session.task_state, START_TIMEOUT_S, "the simulation came up")
            parameters = {"session": str(taken), "use_sim_time": True, "timeout_s": _SHOT_WAIT_S}
            overrides = [Parameter(name, value=value) for name, value in parameters.items()]
            told: list[str] = []
            capture = CaptureNode(keys=keys, say=told.append, parameter_overrides=overrides)
            session.add(capture)
            arms = _Arms(session)
            for place in range(places):
                arms.rest()
                session.reset(seeds[place], seeded=("mujoco_node",), paused=False)
                session.set_parameter("control_node", "source", "replay")  # which a reset ends
                if place:
                    os.write(press, b"b")
                for joints in looking_poses(board, cameras, board_place(board, place), shots, rng):
                    if not arms.go(joints):
                        say("the gate did not let the arms come to a pose; it is left out")
                        continue
                    del told[:]
                    os.write(press, b"\n")
                    session.spin_until(lambda: _answered(told), _SHOT_S, "a shot")
                    say("\n".join(told))
    finally:
        os.close(keys)
        os.close(press)
    return _recovered(taken, say)


def _answered(told: list[str]) -> bool:
    return any("views so far" in line or line.startswith("no shot") for line in told)


def _recovered(taken: Path, say: Callable[[str], None]) -> list[Recovered]:
    observed = observe(Shots.open(taken))
    solution = solve(observed, {})
    report = quality.report(observed, solution)
    say(report.text)
    truth = default_cameras()
    found = []
    for name, pose in solution.cameras.items():
        mm, deg = distance(pose, truth[name].frame_from_camera)
        found.append(Recovered(name, mm, deg))
        say(f"{name:12} {mm:.2f} mm and {deg:.3f} degrees from where it is")
    return found
