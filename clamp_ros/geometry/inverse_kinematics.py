"""Inverse kinematics of one arm by damped least squares on the pose error.

Damping keeps the steps bounded at singularities, and starting from the previous solution keeps a trajectory on one
branch: the wrist never flips, because a step that far is never the smallest one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.robot import ARM_JOINTS, LOWER_LIMITS, UPPER_LIMITS
from clamp_ros.geometry.kinematics import ARM_CHAIN, GRIPPER_LINK_FROM_GRIPPER, WORLD_FROM_BASE
from clamp_ros.geometry.transforms import make

_COUNT = len(ARM_JOINTS)
_FOREARM_ROLL = ARM_JOINTS.index("forearm_roll")
_LOWER, _UPPER = LOWER_LIMITS[:_COUNT], UPPER_LIMITS[:_COUNT]
_OFFSETS = np.array([offset for offset, _ in ARM_CHAIN])
_AXES = np.array([axis for _, axis in ARM_CHAIN])
_SKEW = np.cross(_AXES[:, None, :], -np.eye(3))
_SKEW_SQUARED = _SKEW @ _SKEW
_LIMIT_MARGIN_RAD = 0.01
_DAMPING = 0.02
_MAX_STEP_RAD = 0.3
_METRES_PER_RADIAN = 0.15
"""Weight of orientation against position: a radian costs as much as the gripper's length."""


def forward(arm: str, joints: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """world_from_gripper (4, 4) and the world-frame Jacobian (6, 6) (m/rad, then rad/rad) of six arm joints."""
    angles = np.asarray(joints, dtype=np.float64)[:, None, None]
    turns = np.eye(3) + np.sin(angles) * _SKEW + (1.0 - np.cos(angles)) * _SKEW_SQUARED  # Rodrigues, all joints at once
    rotation, position = WORLD_FROM_BASE[arm][:3, :3], WORLD_FROM_BASE[arm][:3, 3]
    axes, origins = np.empty((3, _COUNT)), np.empty((3, _COUNT))
    for i in range(_COUNT):
        position = rotation @ _OFFSETS[i] + position
        origins[:, i], axes[:, i] = position, rotation @ _AXES[i]
        rotation = rotation @ turns[i]
    pose = make(rotation, position) @ GRIPPER_LINK_FROM_GRIPPER
    (ax, ay, az), (dx, dy, dz) = axes, pose[:3, 3:] - origins
    jacobian = np.stack([ay * dz - az * dy, az * dx - ax * dz, ax * dy - ay * dx, ax, ay, az])
    return pose, jacobian


def rotation_vector(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) axis times angle of a (3, 3) rotation; angle below pi."""
    skew = 0.5 * np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    sine = float(np.linalg.norm(skew))
    angle = float(np.arctan2(sine, 0.5 * (np.trace(rotation) - 1.0)))
    return skew if sine < 1e-9 else skew * (angle / sine)


class Reached(NamedTuple):
    """The (6,) joint angles that were found, and how far from the pose they leave the gripper."""

    joints: NDArray[np.float64]
    off_m: float
    off_rad: float


def approach(
    arm: str,
    world_from_gripper: NDArray[np.float64],
    seed: ArrayLike,
    tolerance_m: float = 1e-5,
    tolerance_rad: float = 1e-4,
    iterations: int = 100,
    planar: bool = False,
) -> Reached:
    """Joint angles, near `seed` and inside the limits, that bring the gripper to a pose, or as near as the steps led.

    Args:
        arm: left or right.
        world_from_gripper: (4, 4) pose of the frame `{arm}/gripper`.
        seed: (6,) joint angles to start from.
        tolerance_m, tolerance_rad: how near is near enough.
        iterations: steps at most.
        planar: keep the forearm's roll as it is in `seed`. With a roll of zero this reaches just the poses whose
            approach is in the vertical plane through the base, and passes a straight wrist at any speed.
    """
    joints = np.clip(np.asarray(seed, dtype=np.float64), _LOWER + _LIMIT_MARGIN_RAD, _UPPER - _LIMIT_MARGIN_RAD)
    weights = np.array([1.0, 1.0, 1.0, *(3 * [_METRES_PER_RADIAN])])
    free = np.where(np.arange(_COUNT) == _FOREARM_ROLL, 0.0 if planar else 1.0, 1.0)
    reached = Reached(joints, np.inf, np.inf)
    for _ in range(iterations):
        pose, jacobian = forward(arm, joints)
        error = np.concatenate(
            [world_from_gripper[:3, 3] - pose[:3, 3], rotation_vector(world_from_gripper[:3, :3] @ pose[:3, :3].T)]
        )
        reached = Reached(joints, float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:])))
        if reached.off_m < tolerance_m and reached.off_rad < tolerance_rad:
            break
        weighted = jacobian * weights[:, None] * free
        # damping fades as the error does, so that the last steps converge quadratically
        damping = _DAMPING**2 * min(1.0, float(np.linalg.norm(error * weights)) / 0.05) + 1e-8
        step = weighted.T @ np.linalg.solve(weighted @ weighted.T + damping * np.eye(6), error * weights)
        step *= min(1.0, _MAX_STEP_RAD / max(float(np.abs(step).max()), 1e-12))
        joints = np.clip(joints + step, _LOWER + _LIMIT_MARGIN_RAD, _UPPER - _LIMIT_MARGIN_RAD)
    return reached
