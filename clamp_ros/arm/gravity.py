"""What the weight of an arm asks of its joints: a few lumped moments, by which a leader's motors carry it.

A serial arm on an upright waist has the potential energy V = sum of m g z. With the upper arm, the forearm and the hand
each lumped into moments (mass x distance x g), V depends on four joints only, and the torque that holds the arm still
is its gradient. The wrist's last joint is taken to turn the hand about its own centre of mass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.config import check, param


@dataclass(frozen=True)
class GravityModel:
    """Moments of an arm's parts, each with all that hangs on it further out.

    The defaults are those of a WidowX 250 6-DoF with 0.28 kg beyond its wrist (masses and centres of mass of
    Interbotix's `wx250s.urdf.xacro`). ALOHA 2's leaders have other handles, and balancers: tune them on yours.
    """

    upper_along_nm: float = param(2.6, "along the upper arm, shoulder to elbow", unit="N m", minimum=0.0, maximum=10.0)
    upper_across_nm: float = param(
        0.4, "across it, forwards where the arm stands upright", unit="N m", minimum=-5.0, maximum=5.0
    )
    forearm_nm: float = param(1.4, "along the forearm, elbow to wrist", unit="N m", minimum=0.0, maximum=10.0)
    hand_nm: float = param(0.2, "along the hand, from the wrist on", unit="N m", minimum=0.0, maximum=5.0)

    def __post_init__(self) -> None:
        check(self)

    def energy(self, joints: ArrayLike) -> float:
        """Potential energy in joules of (6,) arm joints in radians, contract directions; 0 is arbitrary."""
        q = np.asarray(joints, dtype=np.float64)
        pitch = q[1] + q[2]  # of the forearm, downwards
        upper = self.upper_along_nm * np.cos(q[1]) - self.upper_across_nm * np.sin(q[1])
        hand = np.sin(pitch) * np.cos(q[4]) + np.cos(pitch) * np.cos(q[3]) * np.sin(q[4])
        return float(upper - self.forearm_nm * np.sin(pitch) - self.hand_nm * hand)

    def torques(self, joints: ArrayLike) -> NDArray[np.float64]:
        """(6,) torques in newton metres that hold (6,) arm joints still: the gradient of the energy."""
        q = np.asarray(joints, dtype=np.float64)
        pitch = q[1] + q[2]
        sin, cos = np.sin, np.cos
        forearm = -self.forearm_nm * cos(pitch)
        hand = -self.hand_nm * (cos(pitch) * cos(q[4]) - sin(pitch) * cos(q[3]) * sin(q[4]))
        upper = -self.upper_along_nm * sin(q[1]) - self.upper_across_nm * cos(q[1])
        roll = self.hand_nm * cos(pitch) * sin(q[3]) * sin(q[4])
        wrist = self.hand_nm * (sin(pitch) * sin(q[4]) - cos(pitch) * cos(q[3]) * cos(q[4]))
        return np.array([0.0, upper + forearm + hand, forearm + hand, roll, wrist, 0.0])
