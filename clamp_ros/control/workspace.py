"""The box that the grippers may not leave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.config import check, param
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import ARMS
from clamp_ros.geometry.kinematics import gripper_position

_SIDES = tuple(f"{arm}/gripper {axis}" for arm in ARMS for axis in "xyz")


@dataclass(frozen=True)
class WorkspaceConfig:
    """Where the point between the fingertips may be, world frame; by default the table and 5 cm around it."""

    min_m: tuple[float, ...] = param((-0.66, -0.42, -0.01), "least x, y, z of a gripper", unit="m")
    max_m: tuple[float, ...] = param((0.66, 0.42, 0.75), "greatest x, y, z of a gripper", unit="m")

    def __post_init__(self) -> None:
        check(self)
        if len(self.min_m) != 3 or len(self.max_m) != 3 or not np.less(self.min_m, self.max_m).all():
            raise ConfigError(
                f"min_m is {list(self.min_m)} and max_m {list(self.max_m)}, expected three numbers each, the first less"
            )


class Workspace:
    """The box; it is asked as `Clearance` is."""

    def __init__(self, config: WorkspaceConfig | None = None) -> None:
        config = config or WorkspaceConfig()
        self._min, self._max = np.array(config.min_m * len(ARMS)), np.array(config.max_m * len(ARMS))

    def shortfalls(self, joints: NDArray[np.float64]) -> NDArray[np.float64]:
        """(6,) metres by which each gripper is outside on each axis; 0 inside."""
        points = _points(joints)
        return np.maximum(np.maximum(self._min - points, points - self._max), 0.0)

    def says(self, joints: NDArray[np.float64], side: int) -> str:
        """A gripper's coordinate in words."""
        return (
            f"{_SIDES[side]} is {_points(joints)[side]:.3f} m, outside the workspace {self._min[side]:.3f}.."
            f"{self._max[side]:.3f}"
        )


def _points(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([value for arm in ARMS for value in gripper_position(arm, joints)])
