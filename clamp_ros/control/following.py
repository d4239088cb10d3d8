"""Whether the arms do what they are told: they may lag or strain, but not too far and not for long."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.config import check, param
from clamp_ros.contract.robot import EFFORT_LIMITS, GRIPPER_INDICES, JOINT_NAMES, NUM_JOINTS

_NONE = np.zeros(NUM_JOINTS)


@dataclass(frozen=True)
class FollowingConfig:
    """Limits of lag and effort. Grippers have none: holding a thing is lag and effort; their motors limit the force."""

    error_rad: float = param(
        0.35, "how far an arm joint may be from its command for longer than error_s", unit="rad",
        minimum=0.02, maximum=6.3,
    )  # fmt: skip
    error_s: float = param(0.3, "for so long", unit="s", minimum=0.0, maximum=10.0)
    effort_share: float = param(
        0.8, "share of its motors' stall torque that an arm joint may need for longer than effort_s",
        minimum=0.05, maximum=1.0,
    )  # fmt: skip
    effort_s: float = param(0.5, "for so long", unit="s", minimum=0.0, maximum=10.0)
    yield_s: float = param(
        1.0, "what is in the way is not pressed on: the arms hold where they were found, for this long at least",
        unit="s", minimum=0.0, maximum=60.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)


class Following:
    """Counts for how long each joint has been beyond its limits."""

    def __init__(self, config: FollowingConfig | None = None) -> None:
        self._config = config or FollowingConfig()
        self._errors = np.full(NUM_JOINTS, self._config.error_rad)
        self._efforts = self._config.effort_share * EFFORT_LIMITS
        for limits in (self._errors, self._efforts):
            limits[list(GRIPPER_INDICES)] = np.inf
        self.clear()

    def clear(self) -> None:
        """Begins to count anew."""
        self._astray_s, self._strained_s = np.zeros(NUM_JOINTS), np.zeros(NUM_JOINTS)

    def check(
        self,
        command: NDArray[np.float64],
        measured: NDArray[np.float64],
        efforts: NDArray[np.float64] | None,
        dt_s: float,
    ) -> str | None:
        """What has been wrong for too long, or None.

        Args:
            command, measured: (14,) where the arms are told to be, and are.
            efforts: (14,) N m and N; None where the robot does not tell.
            dt_s: since the last call.
        """
        config = self._config
        error = np.abs(command - measured)
        self._astray_s = np.where(error > self._errors, self._astray_s + dt_s, 0.0)
        effort = _NONE if efforts is None else np.abs(efforts)
        self._strained_s = np.where(effort > self._efforts, self._strained_s + dt_s, 0.0)
        if self._astray_s.max() > config.error_s:
            i = int(self._astray_s.argmax())
            return (
                f"{JOINT_NAMES[i]} has been off its command for {self._astray_s[i]:.2f} s, by {error[i]:.2f} rad, "
                f"limit {config.error_rad:.2f}; is it obstructed?"
            )
        if self._strained_s.max() > config.effort_s:
            i = int(self._strained_s.argmax())
            return (
                f"{JOINT_NAMES[i]} has strained for {self._strained_s[i]:.2f} s, with {effort[i]:.1f} N m, limit "
                f"{self._efforts[i]:.1f}; is it obstructed or overloaded?"
            )
        return None
