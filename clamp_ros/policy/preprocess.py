"""From contract units to the network's and back: the one place where numbers are scaled, for training and the robot.

Proprioception is standardised by mean and standard deviation. Actions, and the history of actions, are scaled by their
range to -1..1. A history row of exact zeros stands for "before the episode" (paper Section III-A: missing terms are
zero-padded) and stays zero; no true action is all zeros, since a gripper never closes below 2 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import GRIPPER_INDICES, NUM_JOINTS

# Joints that hardly move in the data (the idle arm of a one-armed task) would be scaled by almost nothing, and noise
# blown up. A floor rather than unit scale: unit scale would turn the policy's residual noise on them into radians.
_STD_FLOOR_RAD, _STD_FLOOR_M = 0.03, 0.01
_RANGE_FLOOR_RAD, _RANGE_FLOOR_M = 0.1, 0.01


def _floor(arm: float, gripper: float) -> NDArray[np.float64]:
    floor = np.full(NUM_JOINTS, arm)
    floor[list(GRIPPER_INDICES)] = gripper
    return floor


@dataclass(frozen=True, eq=False)
class Normalization:
    """Statistics of the training data, (14,) float64 each, contract order, rad and m; they travel in the manifest."""

    proprio_mean: NDArray[np.float64]
    proprio_std: NDArray[np.float64]
    action_min: NDArray[np.float64]
    action_max: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name in ("proprio_mean", "proprio_std", "action_min", "action_max"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if array.shape != (NUM_JOINTS,) or not np.isfinite(array).all():
                raise ContractError(f"{name} is {array.tolist()}, expected {NUM_JOINTS} finite numbers")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if not (self.proprio_std > 0.0).all():
            raise ContractError(f"proprio_std is {self.proprio_std.tolist()}, expected positive numbers")
        if not (self.action_max > self.action_min).all():
            raise ContractError("action_max must lie above action_min for every joint; fit the statistics again")

    @classmethod
    def fit(cls, proprio: ArrayLike, actions: ArrayLike) -> Normalization:
        """Statistics of (N, 14) measured joints and (M, 14) actions; N, M > 0. Near-constant joints get a floor.

        Raises:
            ContractError: an array is empty, of another shape, or not finite.
        """
        q, a = np.asarray(proprio, dtype=np.float64), np.asarray(actions, dtype=np.float64)
        for what, array in (("proprio", q), ("actions", a)):
            if array.ndim != 2 or array.shape[1] != NUM_JOINTS or len(array) == 0 or not np.isfinite(array).all():
                raise ContractError(f"{what} is {array.shape}, expected (N, {NUM_JOINTS}) finite numbers with N > 0")
        low, high = a.min(axis=0), a.max(axis=0)
        widen = np.maximum(_floor(_RANGE_FLOOR_RAD, _RANGE_FLOOR_M) - (high - low), 0.0) / 2.0
        std = np.maximum(q.std(axis=0), _floor(_STD_FLOOR_RAD, _STD_FLOOR_M))
        return cls(q.mean(axis=0), std, low - widen, high + widen)

    def proprio(self, joints: ArrayLike) -> NDArray[np.float32]:
        """Measured joints (..., 14) to zero mean and unit deviation."""
        return ((np.asarray(joints, dtype=np.float64) - self.proprio_mean) / self.proprio_std).astype(np.float32)

    def actions(self, actions: ArrayLike) -> NDArray[np.float32]:
        """Actions (..., 14) to -1..1; actions beyond the data's range fall outside."""
        unit = (np.asarray(actions, dtype=np.float64) - self.action_min) / (self.action_max - self.action_min)
        return (2.0 * unit - 1.0).astype(np.float32)

    def actions_inverse(self, normalised: ArrayLike) -> NDArray[np.float64]:
        """Normalised actions (..., 14), clipped to -1..1, back to rad and m; never outside the data's range."""
        unit = (np.clip(np.asarray(normalised, dtype=np.float64), -1.0, 1.0) + 1.0) / 2.0
        return np.clip(self.action_min + unit * (self.action_max - self.action_min), self.action_min, self.action_max)

    def history(self, rows: ArrayLike) -> NDArray[np.float32]:
        """Action history (..., 14) as actions, but rows of exact zeros (missing) stay zero."""
        history = np.asarray(rows, dtype=np.float64)
        present = history.any(axis=-1, keepdims=True)
        return np.where(present, self.actions(history), np.float32(0.0)).astype(np.float32)


def resize_rgb(color: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resizes (H, W, 3) uint8 RGB by area averaging to (height, width, 3) uint8."""
    if color.shape[:2] == (height, width):
        return color
    return np.asarray(cv2.resize(color, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def preprocess_rgb(color: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """Resizes (H, W, 3) uint8 RGB by area averaging to (3, height, width) float32 in 0..1."""
    scaled = np.ascontiguousarray(resize_rgb(color, height, width).transpose(2, 0, 1)).astype(np.float32)
    scaled /= 255.0
    return scaled


def pad_cloud(cloud: NDArray[np.float32], max_points: int) -> NDArray[np.float32]:
    """(max_points, 3) float32: the cloud, then points at the origin (paper Appendix C), which are never rendered.

    Raises:
        ContractError: the cloud is larger than max_points.
    """
    if len(cloud) > max_points:
        raise ContractError(f"the cloud has {len(cloud)} points, more than the {max_points} to pad it to")
    out = np.zeros((max_points, 3), dtype=np.float32)
    out[: len(cloud)] = cloud
    return out
