"""Inverse kinematics for experts: a pose that cannot be reached is an error, which says by how much."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.errors import SimulationError
from clamp_ros.geometry.inverse_kinematics import approach, forward, rotation_vector

__all__ = ["forward", "rotation_vector", "solve"]


def solve(
    arm: str,
    world_from_gripper: NDArray[np.float64],
    seed: ArrayLike,
    tolerance_m: float = 1e-5,
    tolerance_rad: float = 1e-4,
    iterations: int = 100,
    planar: bool = False,
) -> NDArray[np.float64]:
    """The (6,) joint angles that bring the gripper to a pose; arguments as of `approach`.

    Raises:
        SimulationError: the pose is out of reach from this seed; the message says by how much.
    """
    reached = approach(arm, world_from_gripper, seed, tolerance_m, tolerance_rad, iterations, planar)
    if reached.off_m < tolerance_m and reached.off_rad < tolerance_rad:
        return reached.joints
    where = np.round(world_from_gripper[:3, 3], 3).tolist()
    raise SimulationError(
        f"the {arm} arm cannot bring its gripper to {where} m: off by {reached.off_m * 1000:.1f} mm and "
        f"{reached.off_rad:.3f} rad after {iterations} steps; move the target nearer to the arm or change its "
        "orientation"
    )
