"""Smooth gripper motions through Cartesian waypoints, turned into absolute joint targets at 50 Hz.

Every move is a minimum-jerk displacement. Moves may overlap in time: their displacements add up, so that a corner is
rounded without stopping and without a jump in velocity or acceleration.

Waypoints are Cartesian; between them, displacements are taken in cylindrical coordinates about the arm's waist
(azimuth, radius, height; yaw off that azimuth, pitch, roll). A gripper that is in the vertical plane through
the waist at both ends then stays in it on the way, and the wrist passes its singularity (straight) without a roll.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import SimulationError
from clamp_ros.contract.robot import (
    ARM_JOINTS,
    ARM_SLICES,
    CONTROL_RATE_HZ,
    GRIPPER_INDICES,
    JOINT_NAMES,
    LOWER_LIMITS,
    REST_POSE,
    UPPER_LIMITS,
    VELOCITY_LIMITS,
)
from clamp_ros.geometry.kinematics import WORLD_FROM_BASE
from clamp_ros.geometry.transforms import axis_angle, invert, make
from clamp_ros.sim.experts.ik import forward, solve

_UP = (0.0, 0.0, 1.0)
_SPEED_MARGIN = 0.9
"""Planned joint speeds stay below this share of their limits."""
COMFORT = 0.55
"""Share of its speed limit that the busiest joint of a comfortable move reaches."""
PEAK_OVER_MEAN = 1.875
"""Of minimum jerk."""
_SHORTEST_MOVE_S = 0.9
_GRIP_LIMITS_M = (LOWER_LIMITS[GRIPPER_INDICES[0]], UPPER_LIMITS[GRIPPER_INDICES[0]])
_IN_PLANE_RAD = 2e-3
"""Approaches nearer to the arm's vertical plane than this are held to be in it: solutions of `ik` are not exact."""


@dataclass(frozen=True)
class _Move:
    start_s: float
    duration_s: float
    shift: NDArray[np.float64]
    grip_m: float


def minimum_jerk(fraction: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Share of the way after a share of the time; velocity and acceleration end at zero (Flash & Hogan 1985)."""
    t = np.clip(fraction, 0.0, 1.0)
    return t**3 * (10.0 - 15.0 * t + 6.0 * t**2)


def _split(arm: str, world_from_gripper: NDArray[np.float64]) -> NDArray[np.float64]:
    """(6,) a gripper about its arm's base: azimuth, radius, height; then yaw off that azimuth, pitch down, and roll.

    Roll and yaw are one and the same where the gripper points straight down: stay 5 degrees away from that.
    """
    pose = invert(WORLD_FROM_BASE[arm]) @ world_from_gripper
    x, y, z = pose[:3, 3]
    azimuth = float(np.arctan2(y, x))
    local = axis_angle(_UP, azimuth).T @ pose[:3, :3]
    yaw = float(np.arctan2(local[1, 0], local[0, 0]))
    pitch = float(np.arcsin(np.clip(-local[2, 0], -1.0, 1.0)))
    roll = float(np.arctan2(local[2, 1], local[2, 2]))
    return np.array([azimuth, np.hypot(x, y), z, 0.0 if abs(yaw) < _IN_PLANE_RAD else yaw, pitch, roll])


def _join(arm: str, cylinder: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `_split`."""
    azimuth, radius, height, yaw, pitch, roll = (float(value) for value in cylinder)
    position = (radius * np.cos(azimuth), radius * np.sin(azimuth), height)
    rotation = axis_angle(_UP, azimuth + yaw) @ axis_angle((0.0, 1.0, 0.0), pitch) @ axis_angle((1.0, 0.0, 0.0), roll)
    return WORLD_FROM_BASE[arm] @ make(rotation, position)


class ArmPath:
    """Moves of one gripper, added one after another from a starting joint vector.

    Args:
        arm: left or right.
        joints: (14,) joint targets at the start.
        speed: factor on all durations' inverse; 1.1 is ten percent faster.
    """

    def __init__(self, arm: str, joints: NDArray[np.float64], speed: float = 1.0) -> None:
        self.arm = arm
        self._joints = np.array(joints, dtype=np.float64)
        self._speed = speed
        self._start_pose, _ = forward(arm, self._joints[ARM_SLICES[arm]][: len(ARM_JOINTS)])
        self._start_grip_m = float(self._joints[ARM_SLICES[arm]][-1])
        self._cylinder = _split(arm, self._start_pose)
        self._grip_m = self._start_grip_m
        self._planar_until_s = np.inf if self._cylinder[3] == 0.0 else 0.0
        self._moves: list[_Move] = []
        self._end_s = 0.0

    @property
    def start_pose(self) -> NDArray[np.float64]:
        """(4, 4) world_from_gripper at the start."""
        return self._start_pose

    @property
    def end_s(self) -> float:
        """When the moves so far end."""
        return self._end_s

    @property
    def ticks(self) -> int:
        """Rows of `joint_targets` for the moves so far."""
        return int(np.ceil(self._end_s * CONTROL_RATE_HZ - 1e-9))

    def move(
        self,
        duration_s: float,
        pose: NDArray[np.float64] | None = None,
        grip_m: float | None = None,
        blend_s: float = 0.0,
    ) -> None:
        """Adds a move to a gripper pose and finger position; what is left out stays as it is.

        Args:
            duration_s: at speed 1.
            pose: (4, 4) world_from_gripper at the end of the move.
            grip_m: finger position at the end of the move.
            blend_s: how long before the end of the move before this one begins.
        """
        cylinder = self._cylinder if pose is None else _split(self.arm, pose)
        grip_m = self._grip_m if grip_m is None else grip_m
        start_s = max(self._end_s - blend_s / self._speed, 0.0)
        shift = cylinder - self._cylinder
        self._moves.append(_Move(start_s, duration_s / self._speed, shift, grip_m - self._grip_m))
        self._end_s = max(self._end_s, start_s + duration_s / self._speed)
        self._cylinder, self._grip_m = cylinder, grip_m
        if cylinder[3] != 0.0:
            self._planar_until_s = min(self._planar_until_s, start_s)

    def wait_until(self, time_s: float) -> None:
        """Stays where it is until a time, if that is later than the end of the moves so far."""
        self._end_s = max(self._end_s, time_s)

    def seconds_to(self, pose: NDArray[np.float64]) -> float:
        """A comfortable duration, at speed 1, of a move from the last pose to this one: by the joint that travels most.

        Raises:
            SimulationError: the pose is out of reach.
        """
        rest = REST_POSE[ARM_SLICES[self.arm]][: len(ARM_JOINTS)]
        cylinder = _split(self.arm, pose)
        # an end in the arm's plane is solved in it, from rest; one off the plane in the branch of the other end
        ends = sorted((self._cylinder, cylinder), key=lambda end: bool(end[3] != 0.0))
        first = solve(self.arm, _join(self.arm, ends[0]), rest, planar=ends[0][3] == 0.0)
        travel = np.abs(solve(self.arm, _join(self.arm, ends[1]), first, planar=ends[1][3] == 0.0) - first)
        limits = VELOCITY_LIMITS[ARM_SLICES[self.arm]][: len(ARM_JOINTS)]
        return max(_SHORTEST_MOVE_S, PEAK_OVER_MEAN * float((travel / limits).max()) / COMFORT)

    def pose_at(self, time_s: float) -> tuple[NDArray[np.float64], float]:
        """world_from_gripper (4, 4) and finger position at a time."""
        cylinder = _split(self.arm, self._start_pose)
        grip_m = self._start_grip_m
        for move in self._moves:
            if time_s <= move.start_s:
                continue
            share = float(minimum_jerk((time_s - move.start_s) / move.duration_s))
            cylinder = cylinder + share * move.shift
            grip_m += share * move.grip_m
        return _join(self.arm, cylinder), grip_m

    def joint_targets(self) -> NDArray[np.float64]:
        """(T, 14) joint targets, one a control tick, from the first tick after the start to the end of the last move.

        The other arm keeps its starting joints.

        Raises:
            SimulationError: a pose is out of reach, or a joint would have to move faster than its limit.
        """
        count = self.ticks
        targets = np.tile(self._joints, (count, 1))
        columns = ARM_SLICES[self.arm]
        seed = self._joints[columns][: len(ARM_JOINTS)]
        for row in range(count):
            time_s = (row + 1) / CONTROL_RATE_HZ
            pose, grip_m = self.pose_at(time_s)
            seed = solve(self.arm, pose, seed, planar=time_s <= self._planar_until_s)
            targets[row, columns] = (*seed, np.clip(grip_m, *_GRIP_LIMITS_M))  # sums of moves are off by a rounding
        speeds = np.abs(np.diff(targets, axis=0, prepend=self._joints[None])) * CONTROL_RATE_HZ
        too_fast = speeds.max(axis=0) > _SPEED_MARGIN * VELOCITY_LIMITS
        if too_fast.any():
            worst = {JOINT_NAMES[i]: round(float(speeds[:, i].max()), 2) for i in np.flatnonzero(too_fast)}
            raise SimulationError(
                f"the planned motion is too fast for {worst} (rad/s, m/s); allowed is {_SPEED_MARGIN} of "
                f"{VELOCITY_LIMITS[np.flatnonzero(too_fast)].tolist()}; make the moves longer"
            )
        return targets


def together(first: ArmPath, second: ArmPath) -> NDArray[np.float64]:
    """(T, 14) joint targets of both arms at the same time; the one that ends sooner then rests.

    Raises:
        SimulationError: as of `ArmPath.joint_targets`.
    """
    paths = {path.arm: path.joint_targets() for path in (first, second)}
    count = max(len(targets) for targets in paths.values())
    rows = np.minimum(np.arange(count)[:, None], [len(targets) - 1 for targets in paths.values()])
    merged = np.empty((count, len(JOINT_NAMES)))
    for column, (arm, targets) in enumerate(paths.items()):
        merged[:, ARM_SLICES[arm]] = targets[rows[:, column], ARM_SLICES[arm]]
    return merged
