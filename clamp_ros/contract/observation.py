"""The values that travel between stages: camera frames, the policy's observation, the action chunk.

All are frozen, and shapes, dtypes and finiteness are checked once, when they are built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import ContractError
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS, NUM_JOINTS
from clamp_ros.contract.views import TILED_SHAPE
from clamp_ros.geometry.pinhole import Pinhole


def _check(array: np.ndarray, shape: tuple[int, ...], dtype: type, what: str) -> None:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        got = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ContractError(f"{what} is {got}, expected {shape} {np.dtype(dtype)}")


def _check_finite(array: np.ndarray, what: str) -> None:
    if not np.isfinite(array).all():
        raise ContractError(f"{what} holds a number that is not finite")


@dataclass(frozen=True, eq=False)
class RgbdFrame:
    """One camera's colour and aligned depth.

    Attributes:
        camera: a name of `contract.interfaces.CAMERAS`.
        stamp_ns: time of the exposure, ROS time.
        color: (H, W, 3) uint8, RGB.
        depth_mm: (H, W) uint16 millimetres along the optical axis, aligned to color; 0 is invalid (REP-118, 16UC1).
        pinhole: intrinsics of both images.
        world_from_camera: (4, 4) float64; the camera's optical frame (x right, y down, z forward).
    """

    camera: str
    stamp_ns: int
    color: NDArray[np.uint8]
    depth_mm: NDArray[np.uint16]
    pinhole: Pinhole
    world_from_camera: NDArray[np.float64]

    def __post_init__(self) -> None:
        h, w = self.pinhole.height, self.pinhole.width
        _check(self.color, (h, w, 3), np.uint8, f"color of {self.camera}")
        _check(self.depth_mm, (h, w), np.uint16, f"depth of {self.camera}")
        _check(self.world_from_camera, (4, 4), np.float64, f"world_from_camera of {self.camera}")
        _check_finite(self.world_from_camera, f"world_from_camera of {self.camera}")


@dataclass(frozen=True, eq=False)
class Observation:
    """What the policy sees at one instant.

    Attributes:
        stamp_ns: stamp of the images the views were rendered from.
        views: (h, h * views, 4) float32, tiled views of (depth, X, Y, Z) in metres, world frame; 0 where nothing is
            seen. The paper's five are (224, 1120, 4).
        colors: camera name to (H, W, 3) uint8 RGB; only the cameras the policy asks for.
        joint_positions: (14,) float32, measured, contract order.
        action_history: (50, 14) float32, the commands sent before the stamp, newest first (paper: a_{t-1} ... a_{t-H});
            rows from before the episode's start are zero.
        cloud: (N, 3) float32, metres, world frame: what the views were rendered from; only for a policy that asks.
    """

    stamp_ns: int
    views: NDArray[np.float32]
    colors: Mapping[str, NDArray[np.uint8]]
    joint_positions: NDArray[np.float32]
    action_history: NDArray[np.float32]
    cloud: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        size = self.views.shape[:2] if isinstance(self.views, np.ndarray) and self.views.ndim == 3 else (0, 0)
        tiled = 0 < size[0] <= size[1] and size[1] % size[0] == 0
        _check(self.views, (*size, 4) if tiled else TILED_SHAPE, np.float32, "views")
        if self.cloud is not None:
            _check(self.cloud, (len(self.cloud), 3), np.float32, "cloud")
            _check_finite(self.cloud, "cloud")
        _check(self.joint_positions, (NUM_JOINTS,), np.float32, "joint_positions")
        _check(self.action_history, (CHUNK_SIZE, NUM_JOINTS), np.float32, "action_history")
        for what in ("views", "joint_positions", "action_history"):
            _check_finite(getattr(self, what), what)
        for camera, color in self.colors.items():
            if color.ndim != 3 or color.shape[2] != 3 or color.dtype != np.uint8:
                raise ContractError(f"color of {camera} is {color.shape} {color.dtype}, expected (H, W, 3) uint8")


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """Fifty absolute joint targets; row i is due at ``stamp_ns + i * CONTROL_PERIOD_NS``.

    Attributes:
        stamp_ns: the stamp of the observation that the chunk was inferred from.
        actions: (50, 14) float64, contract order, radians and metres.
    """

    stamp_ns: int
    actions: NDArray[np.float64]

    def __post_init__(self) -> None:
        _check(self.actions, (CHUNK_SIZE, NUM_JOINTS), np.float64, "actions")
        _check_finite(self.actions, "actions")

    def due_ns(self, index: int) -> int:
        """ROS time at which row `index` is to be sent."""
        return self.stamp_ns + index * CONTROL_PERIOD_NS
