"""Between the motors' counts and the contract's radians, metres, newton metres and newtons."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import (
    ARM_JOINTS,
    GRIPPER_CLOSED_M,
    JOINTS_PER_ARM,
    LOWER_LIMITS,
    UPPER_LIMITS,
    GripperMap,
)

TICKS_PER_TURN = 4096
CENTER_TICKS = 2048
RAD_PER_TICK = 2.0 * math.pi / TICKS_PER_TURN
RAD_S_PER_UNIT = 0.229 * 2.0 * math.pi / 60.0
AMPERE_PER_UNIT = 2.69e-3
VOLT_PER_UNIT = 0.1
PWM_PERCENT_PER_UNIT = 0.113
GRIPPER = JOINTS_PER_ARM - 1


def rad_from_ticks(ticks: float) -> float:
    """A motor's angle; 0 at its centre."""
    return (ticks - CENTER_TICKS) * RAD_PER_TICK


def ticks_from_rad(rad: float) -> int:
    """The tick nearest to a motor's angle."""
    return round(rad / RAD_PER_TICK) + CENTER_TICKS


def gripper_map(touch_rad: float, open_rad: float) -> GripperMap:
    """The gripper's map from two measured angles of its motor.

    The contract's range begins at a finger position that no empty gripper reaches: `GRIPPER_CLOSED_M` is where the pads
    touch, and a target below it squeezes. So the map is drawn on beyond the angle where they touch.

    Args:
        touch_rad: where the pads of the empty gripper just touch.
        open_rad: where it is open as far as it goes.

    Raises:
        ContractError: both angles are the same.
    """
    closed_m, open_m = float(LOWER_LIMITS[GRIPPER]), float(UPPER_LIMITS[GRIPPER])
    beyond = (GRIPPER_CLOSED_M - closed_m) / (open_m - GRIPPER_CLOSED_M)
    return GripperMap(touch_rad + (touch_rad - open_rad) * beyond, open_rad, closed_m, open_m)


@dataclass(frozen=True, eq=False)
class ArmUnits:
    """One arm's conversions; vectors are (7,), the arm's joints then its gripper.

    Attributes:
        signs: (6,) +1 or -1: the joint's direction over its motor's.
        offsets_rad: (6,) the joint's angle at its motor's centre.
        gripper: from the gripper motor's angle to the finger's position.
    """

    signs: tuple[int, ...]
    offsets_rad: tuple[float, ...]
    gripper: GripperMap

    def __post_init__(self) -> None:
        if len(self.signs) != len(ARM_JOINTS) or len(self.offsets_rad) != len(ARM_JOINTS):
            raise ConfigError(
                f"joint_signs has {len(self.signs)} and joint_offsets_rad {len(self.offsets_rad)} values, expected "
                f"{len(ARM_JOINTS)} each: {', '.join(ARM_JOINTS)}"
            )

    @property
    def metres_per_rad(self) -> float:
        """Of the gripper's motor; negative where it closes as its angle grows."""
        g = self.gripper
        return (g.open_m - g.closed_m) / (g.open_raw - g.closed_raw)

    def _factors(self, gripper: float) -> NDArray[np.float64]:
        return np.array([*self.signs, gripper], dtype=np.float64)

    def positions(self, ticks: ArrayLike) -> NDArray[np.float64]:
        """Radians and metres of (7,) ticks."""
        rad = (np.asarray(ticks, dtype=np.float64) - CENTER_TICKS) * RAD_PER_TICK
        return np.append(rad[:GRIPPER] * self.signs + self.offsets_rad, self.gripper.to_metres(float(rad[GRIPPER])))

    def velocities(self, units: ArrayLike) -> NDArray[np.float64]:
        """rad/s and m/s of (7,) `present_velocity`."""
        return np.asarray(units, dtype=np.float64) * RAD_S_PER_UNIT * self._factors(self.metres_per_rad)

    def efforts(self, torques_nm: ArrayLike) -> NDArray[np.float64]:
        """N m of the joints, and N at the gripper's finger (by virtual work), of (7,) torques of the motors."""
        return np.asarray(torques_nm, dtype=np.float64) * self._factors(1.0 / self.metres_per_rad)

    def ticks(self, positions: ArrayLike) -> list[int]:
        """(7,) goals in ticks of positions in radians and metres, clipped to one turn."""
        position = np.asarray(positions, dtype=np.float64)
        rad = (position[:GRIPPER] - self.offsets_rad) * self.signs
        goals = [*map(ticks_from_rad, rad.tolist()), ticks_from_rad(self.gripper.to_raw(float(position[GRIPPER])))]
        return [min(max(goal, 0), TICKS_PER_TURN - 1) for goal in goals]
