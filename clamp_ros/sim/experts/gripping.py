"""How experts hold a gripper: poses by approach and roll, room for the other arm, and the common beginning of a grasp.

A gripper's x axis is its approach, from wrist to fingertips; the fingers close along y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.robot import ARM_SLICES, CONTROL_RATE_HZ, REST_POSE
from clamp_ros.geometry.kinematics import WORLD_FROM_BASE
from clamp_ros.geometry.transforms import axis_angle, make
from clamp_ros.sim.experts.trajectory import ArmPath, minimum_jerk

OPEN_M = 0.036
CLOSED_M = 0.002
"""Below any object's thickness, so that the fingers press."""
HOLD_S = 0.5
OTHER = {"left": "right", "right": "left"}
LEANT_BACK = (0.0, -1.6, 1.5, 0.0, -0.6, 0.0, 0.0084)
"""Joints of an idle arm that makes room: its gripper is 14 cm farther back than at rest."""
LEAN_BACK_S = 1.2
_GRIPPER_FROM_PADS = make(translation=(0.006, 0.0, 0.0035))
"""The middle of the fingertips' pads lies a little behind and below the gripper frame's origin."""
_READY_SHARE, _READY_LEAST_M, _READY_Z_M, _READY_PITCH_RAD = 0.8, 0.30, 0.24, np.deg2rad(50.0)
_STRAY_SHARE = 0.2
_STRAY_M = (0.015, 0.03)
_SNAP_SHARE = 0.1

Plan = TypeVar("Plan")


def outward_rad(arm: str, point: NDArray[np.float64]) -> float:
    """World azimuth of the line from an arm's base to a point."""
    x, y = point[:2] - WORLD_FROM_BASE[arm][:2, 3]
    return float(np.arctan2(y, x))


def reach_m(arm: str, point: NDArray[np.float64]) -> float:
    """Horizontal distance from an arm's base to a point."""
    return float(np.linalg.norm(point[:2] - WORLD_FROM_BASE[arm][:2, 3]))


def aimed_pose(
    point: NDArray[np.float64], azimuth_rad: float, pitch_rad: float, roll_rad: float = 0.0
) -> NDArray[np.float64]:
    """(4, 4) gripper with its pads at a point, pointing to a world azimuth, pitched down, rolled about its approach."""
    rotation = (
        axis_angle((0.0, 0.0, 1.0), azimuth_rad)
        @ axis_angle((0.0, 1.0, 0.0), pitch_rad)
        @ axis_angle((1.0, 0.0, 0.0), roll_rad)
    )
    return make(rotation, point) @ _GRIPPER_FROM_PADS


def gripper_pose(arm: str, point: NDArray[np.float64], pitch_rad: float, roll_rad: float = 0.0) -> NDArray[np.float64]:
    """(4, 4) gripper with its pads at a point, in the vertical plane through the arm's base, pitched down.

    It is the gripper's origin that lies in the plane, whatever the roll: so the forearm never has to roll.
    """
    pose = aimed_pose(point, outward_rad(arm, point), pitch_rad, roll_rad)
    for _ in range(4):
        pose = aimed_pose(point, outward_rad(arm, pose[:3, 3]), pitch_rad, roll_rad)
    return pose


def ready_pose(arm: str, point: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) gripper in the arm's plane, on the way to a point, high and pitched down: from here it may turn aside."""
    base = WORLD_FROM_BASE[arm][:2, 3]
    away = point[:2] - base
    radius = max(_READY_SHARE * float(np.linalg.norm(away)), _READY_LEAST_M)
    return gripper_pose(arm, np.array([*(base + radius * away / np.linalg.norm(away)), _READY_Z_M]), _READY_PITCH_RAD)


def make_room(targets: NDArray[np.float64], arm: str) -> None:
    """Lets an idle arm lean back and return to rest before the end; changes (T, 14) targets in place."""
    ticks = np.arange(1, len(targets) + 1)
    ramp = round(LEAN_BACK_S * CONTROL_RATE_HZ)
    share = minimum_jerk(ticks / ramp) * minimum_jerk((len(targets) - round(HOLD_S * CONTROL_RATE_HZ) - ticks) / ramp)
    columns = ARM_SLICES[arm]
    targets[:, columns] += share[:, None] * (np.array(LEANT_BACK) - REST_POSE[columns])


def hover(
    path: ArmPath,
    reach: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    open_m: float,
    rng: np.random.Generator,
) -> None:
    """Moves in front of what is to be grasped, fingers open; now and then strays first, or snaps at the air.

    Args:
        path: to add the moves to.
        reach: the (4, 4) gripper pose in front of it, displaced by (3,) metres.
        open_m: finger position.
        rng: decides what happens.
    """
    if rng.random() < _STRAY_SHARE:
        angle, distance = rng.uniform(-np.pi, np.pi), rng.uniform(*_STRAY_M)
        stray = reach(distance * np.array([np.cos(angle), np.sin(angle), 0.0]))
        path.move(path.seconds_to(stray), stray, open_m, blend_s=0.3)
        path.move(float(rng.uniform(0.1, 0.3)))
    pose = reach(np.zeros(3))
    path.move(path.seconds_to(pose), pose, open_m, blend_s=0.3)
    if rng.random() < _SNAP_SHARE:
        path.move(0.4, grip_m=0.5 * open_m)
        path.move(0.4, grip_m=open_m)


def go_home(path: ArmPath) -> None:
    """Back to the starting pose, and a short rest there."""
    path.move(path.seconds_to(path.start_pose), path.start_pose, float(REST_POSE[6]), blend_s=0.3)
    path.move(HOLD_S)


def first_possible(ways: Iterable[Callable[[], Plan]]) -> Plan:
    """The plan of the first way that is within the arms' reach.

    Raises:
        SimulationError: none is; the reason is the last way's.
    """
    reason = SimulationError("there is no way to try")
    for way in ways:
        try:
            return way()
        except SimulationError as error:
            reason = error
    raise reason
