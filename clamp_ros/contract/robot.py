"""The ALOHA 2 robot as the whole stack sees it: joint order, limits, rest pose, gripper units, and the 14-vector.

A *joint vector* is (14,) in contract order: the six arm joints then the gripper, left arm then right. Arm joints are in
radians; a gripper is the position of one finger in metres (MuJoCo Menagerie's `ctrl`), so the aperture between the
pads is about ``2 * (q - GRIPPER_CLOSED_M)``. Every message is reordered into this order by name at the edge.

Source of the figures: MuJoCo Menagerie, ALOHA 2 (google-deepmind/mujoco_menagerie, aloha.xml).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.errors import ContractError

ARMS = ("left", "right")
ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
JOINT_NAMES: tuple[str, ...] = tuple(f"{arm}/{joint}" for arm in ARMS for joint in (*ARM_JOINTS, "gripper"))
NUM_JOINTS = len(JOINT_NAMES)
JOINTS_PER_ARM = len(ARM_JOINTS) + 1
GRIPPER_INDICES = (6, 13)
ARM_SLICES = {"left": slice(0, 7), "right": slice(7, 14)}

CONTROL_RATE_HZ = 50
CONTROL_PERIOD_NS = 1_000_000_000 // CONTROL_RATE_HZ
CHUNK_SIZE = 50
"""Actions in a chunk and in the action history (paper Section III-C: chunk of 50, history of H = chunk size)."""

GRIPPER_CLOSED_M = 0.0079
"""Finger position at which the pads of an empty gripper touch."""

_ARM_LOWER = (-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, 0.002)
_ARM_UPPER = (3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 0.037)
# 131 Dynamixel velocity units of 0.229 rpm: the profile limit ALOHA 2 runs its arms with. The gripper's is in m/s.
_ARM_VELOCITY = (3.1416, 3.1416, 3.1416, 3.1416, 3.1416, 3.1416, 0.25)
# Stall torque of a joint's motors over the inertia that they turn with the arm stretched out (Menagerie's): what it can
# do in any pose. Wrist and gripper could do more: they have the forearm's figure, and 25 ms to full speed.
_ARM_ACCELERATION = (14.7, 19.0, 36.0, 60.0, 60.0, 60.0, 10.0)
# Stall torque at 12 V of XM540-W270 (two at shoulder and elbow) and XM430-W350, ROBOTIS e-manual; of the gripper, force
# on a finger at 0.035 m of travel a radian.
_ARM_EFFORT = (10.6, 21.2, 21.2, 10.6, 10.6, 4.1, 117.0)
_ARM_REST = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.0084)


def _frozen(values: ArrayLike) -> NDArray[np.float64]:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


LOWER_LIMITS = _frozen(_ARM_LOWER * 2)
UPPER_LIMITS = _frozen(_ARM_UPPER * 2)
VELOCITY_LIMITS = _frozen(_ARM_VELOCITY * 2)
"""Largest speed of each joint, rad/s for arm joints and m/s for grippers."""
ACCELERATION_LIMITS = _frozen(_ARM_ACCELERATION * 2)
"""Largest change of each joint's commanded speed, rad/s^2 and, for grippers, m/s^2."""
EFFORT_LIMITS = _frozen(_ARM_EFFORT * 2)
"""The most that a joint's motors can do, N m and, for grippers, N."""
REST_POSE = _frozen(_ARM_REST * 2)


@dataclass(frozen=True)
class GripperMap:
    """An affine map from a gripper motor's raw angle to the contract's finger position; calibrated, never assumed."""

    closed_raw: float
    open_raw: float
    closed_m: float = _ARM_LOWER[6]
    open_m: float = _ARM_UPPER[6]

    def __post_init__(self) -> None:
        if not np.isfinite([self.closed_raw, self.open_raw, self.closed_m, self.open_m]).all():
            raise ContractError(f"gripper map holds a number that is not finite: {self}")
        if self.closed_raw == self.open_raw or self.closed_m == self.open_m:
            raise ContractError(f"gripper map is degenerate, closed and open coincide: {self}; calibrate the gripper")

    def to_metres(self, raw: float) -> float:
        """Finger position in metres, clipped to the calibrated range."""
        fraction = (raw - self.closed_raw) / (self.open_raw - self.closed_raw)
        return self.closed_m + min(max(fraction, 0.0), 1.0) * (self.open_m - self.closed_m)

    def to_raw(self, metres: float) -> float:
        """Raw motor angle for a finger position in metres, clipped to the calibrated range."""
        fraction = (metres - self.closed_m) / (self.open_m - self.closed_m)
        return self.closed_raw + min(max(fraction, 0.0), 1.0) * (self.open_raw - self.closed_raw)


def joint_vector(values: ArrayLike, what: str = "joint vector") -> NDArray[np.float64]:
    """Checks that values are (14,) finite numbers and returns them as float64.

    Raises:
        ContractError: the shape is not (14,) or a value is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (NUM_JOINTS,):
        raise ContractError(f"{what} has shape {array.shape}, expected ({NUM_JOINTS},) in contract order")
    if not np.isfinite(array).all():
        bad = ", ".join(JOINT_NAMES[i] for i in np.flatnonzero(~np.isfinite(array)))
        raise ContractError(f"{what} is not finite at: {bad}")
    return array


def order_by_name(
    names: list[str] | tuple[str, ...], values: ArrayLike, what: str = "joint message"
) -> NDArray[np.float64]:
    """Reorders named values into a (14,) joint vector.

    Extra joints are refused as well as missing ones: a command meant for another robot must not move this one.

    Raises:
        ContractError: names are missing, unknown, repeated, or do not match the number of values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(names) != array.size:
        raise ContractError(f"{what} has {len(names)} names and {array.size} positions; expected one position a name")
    index = {name: i for i, name in enumerate(names)}
    if len(index) != len(names):
        raise ContractError(f"{what} repeats a joint name: {sorted(n for n in index if list(names).count(n) > 1)}")
    missing = [name for name in JOINT_NAMES if name not in index]
    unknown = [name for name in names if name not in JOINT_NAMES]
    if missing or unknown:
        raise ContractError(f"{what} does not name the robot's joints; missing {missing}, unknown {unknown}")
    return joint_vector(array[[index[name] for name in JOINT_NAMES]], what)
