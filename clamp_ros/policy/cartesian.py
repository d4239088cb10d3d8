"""Actions as gripper poses in place of joint angles (paper Table IV), and the way back by inverse kinematics.

An action is 20 numbers, for the left arm and then the right: the gripper frame's position (m), the first two columns of
its rotation (Zhou et al. 2019, arXiv 1812.07035: no jump anywhere, as angles would have), the finger's position (m).
Absolute poses are of the world frame; relative ones are of the gripper's own frame at the observation, as measured. The
finger's is absolute in both. The paper says no more than the names; all else stays as it is: the encoders read the
history in joint angles, on which they were pretrained, and the robot is sent joint angles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import ARM_SLICES, ARMS, GRIPPER_INDICES, LOWER_LIMITS, NUM_JOINTS, UPPER_LIMITS
from clamp_ros.geometry.inverse_kinematics import approach
from clamp_ros.geometry.kinematics import world_from_gripper, world_from_grippers
from clamp_ros.geometry.transforms import invert, make

ACTION_SPACES = ("joint", "cartesian", "relative_cartesian")
_PER_ARM = 10
CARTESIAN_WIDTH = _PER_ARM * len(ARMS)
_FLOOR = np.array([0.02] * 3 + [0.1] * 6 + [0.01])
"""The least range that is scaled to -1..1, m, 1 and m: noise on what hardly moves is not blown up."""
_ITERATIONS = 20


def action_width(space: str) -> int:
    """Numbers in an action of one of `ACTION_SPACES`."""
    return NUM_JOINTS if space == "joint" else CARTESIAN_WIDTH


@dataclass(frozen=True, eq=False)
class CartesianActions:
    """The conversion, with the range of the training data; it travels in the manifest.

    Attributes:
        relative: to the gripper at the observation, in place of the world.
        low, high: (20,) of the data, scaled to -1..1.
    """

    relative: bool
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if array.shape != (CARTESIAN_WIDTH,) or not np.isfinite(array).all():
                raise ContractError(f"cartesian.{name} is {array.tolist()}, expected {CARTESIAN_WIDTH} finite numbers")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if not (self.high > self.low).all():
            raise ContractError("cartesian.high must lie above cartesian.low everywhere; fit the statistics again")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"relative": self.relative, "low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def fit(cls, relative: bool, actions: ArrayLike, joints: ArrayLike) -> CartesianActions:
        """The range of chunks (N, 50, 14) seen at measured joints (N, 14); N > 0."""
        poses = _poses(np.asarray(actions, dtype=np.float64), np.asarray(joints, dtype=np.float64), relative)
        low, high = poses.min(axis=(0, 1)), poses.max(axis=(0, 1))
        widen = np.maximum(np.tile(_FLOOR, len(ARMS)) - (high - low), 0.0) / 2.0
        return cls(relative, low - widen, high + widen)

    def encode(self, actions: ArrayLike, joints: ArrayLike) -> NDArray[np.float32]:
        """Joint targets (N, T, 14) at measured joints (N, 14) to normalised poses (N, T, 20)."""
        poses = _poses(np.asarray(actions, dtype=np.float64), np.asarray(joints, dtype=np.float64), self.relative)
        return (2.0 * (poses - self.low) / (self.high - self.low) - 1.0).astype(np.float32)

    def poses(self, normalised: ArrayLike) -> NDArray[np.float64]:
        """(..., 20) within -1..1 to metres and rotation columns."""
        unit = (np.clip(np.asarray(normalised, dtype=np.float64), -1.0, 1.0) + 1.0) / 2.0
        return self.low + unit * (self.high - self.low)

    def decode(self, normalised: ArrayLike, joints: ArrayLike) -> NDArray[np.float64]:
        """Normalised poses (T, 20) to joint targets (T, 14), rad and m, within the limits.

        Args:
            normalised: the network's.
            joints: (14,) measured at the observation. Each arm's solution starts from the one before, the first from
                these, so that it stays on one branch. What is out of reach is approached as far as it goes.
        """
        poses, measured = self.poses(normalised), np.asarray(joints, dtype=np.float64)
        out = np.empty((len(poses), NUM_JOINTS))
        for a, arm in enumerate(ARMS):
            arm_slice = ARM_SLICES[arm]
            seed = measured[arm_slice][:-1]
            frame = world_from_gripper(arm, measured) if self.relative else np.eye(4)
            for t, row in enumerate(poses[:, a * _PER_ARM : (a + 1) * _PER_ARM]):
                target = frame @ make(_rotation(row[3:9]), row[:3])
                seed = approach(arm, target, seed, 1e-4, 1e-3, iterations=_ITERATIONS).joints
                out[t, arm_slice] = [*seed, row[9]]
        return np.clip(out, LOWER_LIMITS, UPPER_LIMITS)


def _poses(actions: NDArray[np.float64], joints: NDArray[np.float64], relative: bool) -> NDArray[np.float64]:
    """(N, T, 14) joint targets at measured joints (N, 14) to (N, T, 20)."""
    count, ticks = actions.shape[:2]
    out = []
    for arm, gripper in zip(ARMS, GRIPPER_INDICES, strict=True):
        pose = world_from_grippers(arm, actions.reshape(-1, NUM_JOINTS)).reshape(count, ticks, 4, 4)
        if relative:
            frames = world_from_grippers(arm, joints)
            pose = np.stack([invert(frame) for frame in frames])[:, None] @ pose if count else pose
        columns = pose[..., :3, :2].swapaxes(-1, -2).reshape(count, ticks, 6)
        out += [pose[..., :3, 3], columns, actions[..., gripper, None]]
    return np.concatenate(out, axis=-1)


def _rotation(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) rotation nearest to two columns (6,) that need not be orthonormal (Gram-Schmidt)."""
    x, y = columns[:3], columns[3:]
    if np.linalg.norm(np.cross(x, y)) < 1e-6:  # no rotation at all: such as the middle of a range
        raise ContractError(f"the policy's rotation {np.round(columns, 3).tolist()} is none; the chunk is dropped")
    x = x / np.linalg.norm(x)
    y = y - (x @ y) * x
    y = y / np.linalg.norm(y)
    return np.column_stack([x, y, np.cross(x, y)])
