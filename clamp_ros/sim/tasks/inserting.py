"""What the tasks that put a long thing into an open one share: how much of it is inside, and whether it stays there."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from clamp_ros.sim.robot_model import TABLE_TOP_M
from clamp_ros.sim.tasks.objects import CONTAINER_HEIGHT_M, CONTAINER_RADIUS_M, PEN_LENGTH_M
from clamp_ros.sim.tasks.task import (
    at_rest,
    gripper_distances_m,
    object_pose,
    tilt_rad,
    touched_by_robot,
    touching,
)
from clamp_ros.sim.tasks.tools import (
    CADDY_FLOOR_M,
    CADDY_HALF_SIZE_M,
    CAN_OPENER_LENGTH_M,
    COMPARTMENT_HALF_SIZE_M,
    COMPARTMENT_X_M,
    SCREWDRIVER_LENGTH_M,
)

INSIDE_M = 0.025
"""At least so much of a thing's length is inside."""
HANDS_OFF_M = 0.10
_UPRIGHT_RAD = np.deg2rad(5.0)
_REST_M_S = 0.005
_REST_RAD_S = 0.1
_POINTS = 31


@dataclass(frozen=True)
class Rod:
    """A long thing as a line along its x axis.

    Attributes:
        length_m: from end to end, its frame's origin in the middle.
        height_m: of the line above its underside.
        half_width_m: across the line, where a gripper takes it.
        grip_m: where along the line a gripper takes it.
        hands_m: where along the line two grippers can hold it at the same time; None where there is no room for two.
    """

    length_m: float
    height_m: float
    half_width_m: float
    grip_m: float
    hands_m: tuple[float, float] | None = None


RODS = {
    "pen": Rod(PEN_LENGTH_M, 0.0065, 0.0065, 0.0, (-0.045, 0.012)),  # not by its clip
    "screwdriver": Rod(SCREWDRIVER_LENGTH_M, 0.0125, 0.0125, -0.005),
    "can_opener": Rod(CAN_OPENER_LENGTH_M, 0.0085, 0.018, 0.010),
    "magnifier": Rod(0.140, 0.0045, 0.027, 0.0),
    "scissors": Rod(0.145, 0.004, 0.036, 0.0),
    "thumb_drive": Rod(0.060, 0.005, 0.0095, 0.0),
}


@dataclass(frozen=True)
class Opening:
    """The inside of an open thing, in its own frame: a box, or a cylinder where `round`.

    Attributes:
        name: of the object it belongs to.
        x_m: of its middle, along the object's x axis.
        half_size_m: along x and y; the radius, twice, of a cylinder.
        floor_m, rim_m: height of its floor and of its rim.
        round: whether it is a cylinder.
    """

    name: str
    x_m: float
    half_size_m: tuple[float, float]
    floor_m: float
    rim_m: float
    round: bool = False

    def contains(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(N,) which of (N, 3) points, in the object's frame, are inside."""
        x, y = (points[:, 0] - self.x_m) / self.half_size_m[0], points[:, 1] / self.half_size_m[1]
        beside = np.hypot(x, y) if self.round else np.maximum(np.abs(x), np.abs(y))
        return (beside < 1.0) & (points[:, 2] > self.floor_m - 0.002) & (points[:, 2] < self.rim_m)


_INNER_M = CONTAINER_RADIUS_M - 0.004
CONTAINER = Opening("container", 0.0, (_INNER_M, _INNER_M), 0.007, CONTAINER_HEIGHT_M, round=True)
COMPARTMENTS = {
    side: Opening("caddy", x, COMPARTMENT_HALF_SIZE_M, CADDY_FLOOR_M, 2.0 * CADDY_HALF_SIZE_M[2])
    for side, x in COMPARTMENT_X_M.items()
}


def length_inside_m(data: mujoco.MjData, rod: str, opening: Opening) -> float:
    """How much of a long thing's line is inside an opening."""
    shape = RODS[rod]
    points = np.zeros((_POINTS, 3))
    points[:, 0] = np.linspace(-0.5, 0.5, _POINTS) * shape.length_m
    points[:, 2] = shape.height_m
    pose, around = object_pose(data, rod), object_pose(data, opening.name)
    world = points @ pose[:3, :3].T + pose[:3, 3]
    inside = opening.contains((world - around[:3, 3]) @ around[:3, :3])
    return float(inside.mean()) * shape.length_m


def rests_inside(model: mujoco.MjModel, data: mujoco.MjData, rod: str, opening: Opening) -> bool:
    """Whether a thing is in an opening and touches nothing but what the opening belongs to; moving or not."""
    return length_inside_m(data, rod, opening) >= INSIDE_M and touching(model, data, rod) == {opening.name}


def stays_inside(model: mujoco.MjModel, data: mujoco.MjData, rod: str, opening: Opening) -> bool:
    """Whether a thing rests in an opening for good: both at rest, upright on the table, and the hands are off."""
    around = opening.name
    return (
        rests_inside(model, data, rod, opening)
        and "world" in touching(model, data, around)
        and not touched_by_robot(touching(model, data, around))
        and min(gripper_distances_m(data, rod).values()) >= HANDS_OFF_M
        and tilt_rad(data, around) < _UPRIGHT_RAD
        and abs(float(data.body(around).xpos[2]) - TABLE_TOP_M) < 0.003
        and all(at_rest(model, data, name, _REST_M_S, _REST_RAD_S) for name in (rod, around))
    )
